"""http_server.py ADDRESS PORT DIRECTORY [CERTIFICATE]: the standard library's threading server, GET and PUT of files.

With a certificate (and its key in the same file) over TLS.
"""

import http.server
import os
import shutil
import ssl
import sys


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        with open(os.path.join(sys.argv[3], os.path.basename(self.path)), "wb") as file:
            while left:
                part = self.rfile.read(min(left, 1 << 18))
                if not part:
                    break
                file.write(part)
                left -= len(part)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def copyfile(self, source, outputfile):
        shutil.copyfileobj(source, outputfile, 1 << 18)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


os.chdir(sys.argv[3])
with Server((sys.argv[1], int(sys.argv[2])), Handler) as server:
    if len(sys.argv) > 4:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[4])
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print("ready", flush=True)
    server.serve_forever()
