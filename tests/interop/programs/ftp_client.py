"""ftp_client.py HOST PORT SENT RECEIVED: the file SENT to the server, passive and active, and back into RECEIVED."""

import ftplib
import sys

host, port, sent, received = sys.argv[1:]
ftp = ftplib.FTP()
ftp.connect(host, int(port), timeout=60)
ftp.login()
ftp.cwd("up")
with open(sent, "rb") as file:
    ftp.storbinary("STOR file", file, 1 << 16)
assert ftp.size("file") > 0
ftp.set_pasv(False)  # the server connects
assert "file" in ftp.nlst()
with open(received, "wb") as file:
    ftp.retrbinary("RETR file", file.write, 1 << 16)
ftp.quit()
