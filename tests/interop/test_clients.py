"""Programs of the subject that ask servers on the kernel's end."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from .conftest import TRANSFER_S, Files
from .worlds import World

PORT = 9000


def ready(world: World, program: str, *arguments: object) -> None:
    """Start one of ours on the kernel's end, until it says that it is ready."""
    world.serve(world.kernel_python, program, *arguments)


def http_server(world: World, files: Files, port: int, location: str) -> str:
    """A server of nginx's configuration: the directory, and what else is to hold for all of it."""
    return f"server {{ listen {world.kernel_address}:{port}; root {files.directory}; location / {{ {location} }} }}"


def nginx(world: World, files: Files, program, *servers: str) -> None:
    """nginx with these servers on the kernel's end, when it listens at PORT."""
    configuration = files.directory / "nginx.conf"
    configuration.write_text(f"""
        user root; daemon off; worker_processes 1; pid {files.directory}/pid; error_log {files.directory}/errors;
        events {{ worker_connections 256; }}
        http {{
            access_log off; client_max_body_size 0;
            client_body_temp_path {files.directory}/body; proxy_temp_path {files.directory}/proxy;
            fastcgi_temp_path {files.directory}/fastcgi; uwsgi_temp_path {files.directory}/uwsgi;
            scgi_temp_path {files.directory}/scgi;
            {" ".join(servers)}
        }}""")
    world.kernel(program("nginx"), "-c", configuration, "-e", files.directory / "errors")
    world.wait_for_port(PORT)


@pytest.mark.parametrize("library", ["urllib", "requests", "httpx", "aiohttp"])
def test_http_with_nginx(world: World, files: Files, program, library: str) -> None:
    nginx(world, files, program, http_server(world, files, PORT, "dav_methods PUT;"))
    world.on_subject("http_client.py", library, f"http://{world.kernel_address}:{PORT}", files.sent, files.received,
                     timeout_s=TRANSFER_S)
    assert files.same()
    assert files.same(files.directory / "put")


def test_paramiko_with_sshd(world: World, files: Files, program) -> None:
    keygen = program("ssh-keygen")
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", files.directory / name], check=True)
    keys = files.directory / "authorized"
    keys.write_bytes((files.directory / "user.pub").read_bytes())
    Path("/run/sshd").mkdir(exist_ok=True)
    world.kernel(program("sshd"), "-D", "-e", "-f", "/dev/null", "-h", files.directory / "host", "-o", f"Port={PORT}",
                 "-o", f"ListenAddress={world.kernel_address}", "-o", f"AuthorizedKeysFile={keys}",
                 "-o", "PidFile=none", "-o", "StrictModes=no", "-o", "UsePAM=no",
                 "-o", "PermitRootLogin=prohibit-password", "-o", "Subsystem=sftp internal-sftp")
    world.wait_for_port(PORT)
    world.on_subject("sftp_client.py", world.kernel_address, PORT, files.directory / "user",
                     pwd.getpwuid(os.geteuid()).pw_name, files.sent, files.received, timeout_s=TRANSFER_S)
    assert files.same()


def test_redis(world: World, files: Files, program) -> None:
    world.kernel(program("redis-server"), "--port", PORT, "--bind", world.kernel_address, "--save", "",
                 "--dir", files.directory, "--protected-mode", "no")
    world.wait_for_port(PORT)
    world.on_subject("redis_client.py", world.kernel_address, PORT, files.sent, files.received, timeout_s=TRANSFER_S)
    assert files.same()


def test_postgresql(world: World, files: Files, program) -> None:
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    initdb, server = (str(binaries[-1] / name) if binaries else program(name) for name in ("initdb", "postgres"))
    database = files.directory / "database"
    database.mkdir()
    user = pwd.getpwnam("postgres")  # it does not run as root
    os.chown(database, user.pw_uid, user.pw_gid)
    as_postgres = [program("setpriv"), f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    subprocess.run([*as_postgres, initdb, "-D", database, "-A", "trust", "--no-sync"], check=True, capture_output=True,
                   cwd=files.directory)
    with (database / "pg_hba.conf").open("a") as file:
        file.write("host all all 10.0.0.0/24 trust\n")
    world.kernel(*as_postgres, server, "-D", database, "-h", world.kernel_address, "-p", PORT, "-k", "", "-F")
    world.wait_for_port(PORT)
    world.on_subject("postgres_client.py", world.kernel_address, PORT, files.sent, files.received, timeout_s=TRANSFER_S)
    assert files.same()


def test_mosquitto(world: World, files: Files, program) -> None:
    configuration = files.directory / "mosquitto.conf"
    configuration.write_text(f"listener {PORT} {world.kernel_address}\nallow_anonymous true\n"
                             "max_queued_messages 0\nmax_inflight_messages 0\nuser root\n")
    world.kernel(program("mosquitto"), "-c", configuration)
    world.wait_for_port(PORT)
    world.on_subject("mqtt_client.py", world.kernel_address, PORT, files.sent, files.received, timeout_s=TRANSFER_S)
    assert files.same()


def test_vsftpd(world: World, files: Files, program) -> None:
    """Passive and active: the server connects to the subject."""
    root = files.directory / "ftp"
    (root / "up").mkdir(parents=True)
    (root / "up").chmod(0o777)
    configuration = files.directory / "vsftpd.conf"
    configuration.write_text(f"""listen=YES
listen_port={PORT}
listen_address={world.kernel_address}
anonymous_enable=YES
anon_upload_enable=YES
anon_umask=022
write_enable=YES
anon_root={root}
no_anon_password=YES
connect_from_port_20=NO
port_enable=YES
background=NO
seccomp_sandbox=NO
secure_chroot_dir={root}
""")
    world.kernel(program("vsftpd"), configuration)
    world.wait_for_port(PORT)
    world.on_subject("ftp_client.py", world.kernel_address, PORT, files.sent, files.received, timeout_s=TRANSFER_S)
    assert files.same()


@pytest.mark.parametrize("protocol", ["websocket.py", "grpc.py"])
def test_python_talks_to_the_kernels_end(world: World, files: Files, protocol: str) -> None:
    ready(world, protocol, "server", world.kernel_address, PORT)
    world.on_subject(protocol, "client", world.kernel_address, PORT, files.sent, files.received, timeout_s=TRANSFER_S)
    assert files.same()


def test_mail_is_delivered(world: World, files: Files) -> None:
    ready(world, "smtp.py", "server", world.kernel_address, PORT, files.received)
    world.on_subject("smtp.py", "client", world.kernel_address, PORT, files.sent, timeout_s=TRANSFER_S)
    assert files.same()
