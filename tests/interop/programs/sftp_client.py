"""sftp_client.py HOST PORT KEY USER SENT RECEIVED: a command, the file SENT to the server and back into RECEIVED."""

import sys

import paramiko

host, port, key, user, sent, received = sys.argv[1:]
client = paramiko.SSHClient()
client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
client.connect(host, int(port), user, key_filename=key, allow_agent=False, look_for_keys=False)
_, output, _ = client.exec_command("echo hello")
assert output.read() == b"hello\n"
sftp = client.open_sftp()
sftp.put(sent, f"{received}.there")
sftp.get(f"{received}.there", received)
client.close()
