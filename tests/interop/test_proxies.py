"""Through a proxy: one of the subject between two programs of the kernel, and foreign ones before the subject."""

from __future__ import annotations

import pytest

from .conftest import TRANSFER_S, Files
from .test_clients import PORT as NGINX_PORT
from .test_clients import http_server, nginx
from .test_servers import PORT, serve
from .worlds import World

FOREIGN_PORT = 9100


@pytest.mark.parametrize("kind", ["threads", "asyncio", "connect", "socks5"])
def test_curl_talks_with_nginx_through_the_subject(world: World, files: Files, program, kind: str) -> None:
    server = f"{world.kernel_address}:{NGINX_PORT}"
    proxy = f"{world.subject_address}:{PORT}"
    nginx(world, files, program, http_server(world, files, NGINX_PORT, "dav_methods PUT;"))
    serve(world, "proxy.py", kind, world.subject_address, PORT, world.kernel_address, NGINX_PORT)
    through = {"connect": ["-p", "-x", f"http://{proxy}"], "socks5": ["-x", f"socks5://{proxy}"]}.get(kind)
    curl = [program("curl"), "-sSf", *(through or [])]
    url = f"http://{server if through else proxy}"
    world.on_kernel(*curl, "-o", files.received, f"{url}/data", timeout_s=TRANSFER_S)
    assert files.same()
    world.on_kernel(*curl, "-T", files.sent, f"{url}/put", timeout_s=TRANSFER_S)
    assert files.same(files.directory / "put")


@pytest.mark.parametrize("foreign", ["socat", "nginx"])
def test_the_subject_talks_with_nginx_through(world: World, files: Files, program, foreign: str) -> None:
    servers = [http_server(world, files, NGINX_PORT, "dav_methods PUT;")]
    if foreign == "nginx":
        servers.append(http_server(world, files, FOREIGN_PORT, f"""
            proxy_pass http://{world.kernel_address}:{NGINX_PORT}; proxy_http_version 1.1;
            proxy_buffering off; proxy_request_buffering off;"""))
    nginx(world, files, program, *servers)
    if foreign == "socat":
        world.kernel(program("socat"), f"TCP-LISTEN:{FOREIGN_PORT},bind={world.kernel_address},fork,reuseaddr",
                     f"TCP:{world.kernel_address}:{NGINX_PORT}")
    world.wait_for_port(FOREIGN_PORT)
    world.on_subject("http_client.py", "urllib", f"http://{world.kernel_address}:{FOREIGN_PORT}", files.sent,
                     files.received, timeout_s=TRANSFER_S)
    assert files.same()
    assert files.same(files.directory / "put")
