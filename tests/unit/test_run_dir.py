"""The run directory against other users of the machine: what is not ours is refused, and is not touched."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from supervisor.control import Client, NotRunning, printable
from supervisor.run_dir import LOCK, MARK, clean_up, take
from usernet.pipe.run_dir import Untrusted, check

STRANGER = 65534
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # rename(2)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@pytest.fixture
def folder():
    """A directory as /tmp is."""
    made = Path(tempfile.mkdtemp(prefix="rd-"))
    made.chmod(0o1777)
    yield made
    shutil.rmtree(made)


def test_ones_own_is_taken_and_leaves_nothing(folder):
    held = take(folder / "own" / "default")
    assert (folder / "own" / "default").stat().st_mode & 0o777 == 0o700
    assert (folder / "own" / "default" / LOCK).read_bytes() == MARK
    held.remove()
    held.close()
    assert not list((folder / "own").iterdir())


def test_a_directory_that_others_can_read_is_refused(folder):
    (folder / "open").mkdir(mode=0o755)
    with pytest.raises(Untrusted, match="not a directory of your own"):
        take(folder / "open")


def test_a_symbolic_link_is_refused_at_either_place(folder):
    (folder / "victim" / "default").mkdir(mode=0o700, parents=True)
    (folder / "default").symlink_to(folder / "victim" / "default")
    (folder / "usernet-0").symlink_to(folder / "victim")
    for path in (folder / "default", folder / "usernet-0" / "default", folder / "usernet-0" / "new"):
        with pytest.raises(Untrusted, match="symbolic link"):
            take(path)
    assert [path.name for path in (folder / "victim").iterdir()] == ["default"]


def test_where_others_may_rename_is_refused(folder):
    folder.chmod(0o777)
    with pytest.raises(Untrusted, match="another user could replace the stack"):
        take(folder / "default")


@as_root
def test_a_strangers_directory_is_refused_and_so_is_one_in_it(folder):
    for path in (folder / "usernet-0", folder / "usernet-0" / "default"):
        path.mkdir(mode=0o700)
        os.chown(path, STRANGER, STRANGER)
    for path in (folder / "usernet-0", folder / "usernet-0" / "default", folder / "usernet-0" / "new"):
        with pytest.raises(Untrusted):
            check(path, make=True)


@as_root
@pytest.mark.parametrize("inside", ["", "default"], ids=["the directory", "one in it"])
def test_a_directory_that_is_closed_to_this_user_is_not_taken_for_missing(folder, inside):
    (folder / "roots" / "default").mkdir(mode=0o700, parents=True)
    (folder / "roots").chmod(0o700)
    code = ("import os, sys; from pathlib import Path; from supervisor.control import Client\n"
            f"os.setresgid({STRANGER}, {STRANGER}, {STRANGER}); os.setresuid({STRANGER}, {STRANGER}, {STRANGER})\n"
            "try:\n    Client(Path(sys.argv[1]))\nexcept PermissionError as error:\n    print(error.strerror)\n")
    asked = subprocess.run([sys.executable, "-c", code, str(folder / "roots" / inside / "stack")], capture_output=True,
                           text=True, check=True)
    assert "belongs to another user" in asked.stdout or "is not yours" in asked.stdout


def test_where_there_is_no_room_for_the_lock_nothing_is_left(folder):
    code = ("import resource, sys; from pathlib import Path; from supervisor.run_dir import leave, take\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))\n"
            "path = Path(sys.argv[1])\ntry:\n    take(path)\nexcept OSError:\n    leave(path)\n    print('refused')\n")
    asked = subprocess.run([sys.executable, "-c", code, str(folder / "default")], capture_output=True, text=True,
                           check=True)
    assert asked.stdout == "refused\n"
    assert not list(folder.iterdir())


def test_a_directory_with_other_things_in_it_is_refused(folder):
    place = folder / "home"
    place.mkdir(mode=0o700)
    (place / "letter").write_text("dear")
    (place / "lock").write_text("another program's")
    with pytest.raises(Untrusted, match="files that are not a stack"):
        take(place)
    assert {path.name for path in place.iterdir()} == {"letter", "lock"}


def test_only_what_stacks_make_is_removed(folder):
    held = take(folder / "default")
    place = folder / "default"
    for name in ("link.sock", "control.sock", "sockets/app-1f.sock"):
        (place / name).parent.mkdir(exist_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place / name))
    (place / "notes").mkdir()
    (place / "notes" / "mine").write_text("kept")
    (place / "udp.sock").write_text("no socket")
    (place / "tcp").symlink_to(place / "notes")
    held.remove()
    held.close()
    assert (place / "notes" / "mine").read_text() == "kept"
    assert {path.name for path in place.iterdir()} == {"notes", "udp.sock", "tcp"}


def test_two_keepers_do_not_hold_it_at_once(folder, monkeypatch):
    monkeypatch.setattr("supervisor.run_dir.WAIT_S", 0.05)
    held = take(folder / "default")
    with pytest.raises(BlockingIOError):
        take(folder / "default")
    held.close()
    take(folder / "default").close()


@as_root
def test_a_race_for_the_name_gains_nothing(folder):
    """A user who may rename the parent directory repeatedly replaces it by a link to the victim's."""
    victim = folder / "victim"
    (victim / "default").mkdir(mode=0o700, parents=True)
    precious = [victim / "default" / name for name in ("udp.sock", "letter", "sockets")]
    for path in precious:
        path.write_text("precious")
    (victim / "default" / "lock").write_bytes(MARK)  # as if it were a stack's: nothing but the names protects it
    mine = folder / "mine"
    mine.mkdir(mode=0o700)
    over = threading.Event()

    (folder / "link").symlink_to(victim)
    one, other = os.fsencode(mine), os.fsencode(folder / "link")

    def swap() -> None:
        while not over.is_set():
            ctypes.CDLL(None).renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE)

    attacker = threading.Thread(target=swap)
    attacker.start()
    taken = tried = 0
    deadline = time.monotonic() + 60
    try:
        while tried < 300 or (not taken and time.monotonic() < deadline):
            tried += 1
            try:
                held = take(mine / "default")
            except (OSError, Untrusted):
                continue
            taken += 1
            held.sweep()
            held.remove()
            held.close()
    finally:
        over.set()
        attacker.join()
    assert taken
    assert all(path.read_text() == "precious" for path in precious)


ANSWERS_AS_KEEPER = """
import os, socket, sys
os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
while True:
    caller, _ = listener.accept()
    asked = caller.recv(1000)
    print(asked, flush=True)
    if asked:
        caller.sendall(b'{"ok": {"keeper": 1, "wire": ""}}\\n')
"""


@as_root
@pytest.mark.parametrize("whose", ["the stranger's directory", "a socket in ours"])
def test_nothing_is_sent_to_a_foreign_process_that_answers_as_the_keeper(folder, whose):
    place = folder / "usernet-0" / "default"
    place.mkdir(parents=True)
    os.chown(place.parent, STRANGER, STRANGER)
    os.chown(place, STRANGER, STRANGER)
    program = [sys.executable, "-c", ANSWERS_AS_KEEPER, str(place / "control.sock")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as stranger:
        try:
            assert stranger.stdout.readline() == "ready\n"
            if whose == "a socket in ours":
                os.chown(place.parent, 0, 0)
                os.chown(place, 0, 0)
                place.chmod(0o700)
            with pytest.raises(Untrusted):
                Client(place)
        finally:
            stranger.kill()
        assert "status" not in stranger.stdout.read()


def test_a_directory_without_a_stack_is_reported_as_not_running(folder):
    with pytest.raises(NotRunning):
        Client(folder / "nobody")


def test_a_keeper_with_too_many_callers_is_not_taken_for_missing(folder):
    place = folder / "default"
    place.mkdir(mode=0o700)
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(place / "control.sock"))
        listener.listen(0)
        while True:
            waits = sockets.enter_context(socket.socket(socket.AF_UNIX))
            waits.setblocking(False)
            if waits.connect_ex(str(place / "control.sock")):
                break
        with pytest.raises(TimeoutError, match="too many wait"):
            Client(place)
        room = threading.Timer(0.1, listener.accept)  # a caller that comes a little too early waits
        room.start()
        Client(place).close()
        room.join()


def test_text_of_other_users_is_printed_escaped():
    assert printable("a\nb\x1b[2J\x07\x9bä") == "a\nb\\x1b[2J\\x07\\x9bä"


def test_the_files_of_a_killed_keeper_are_removed_though_a_fork_of_it_still_has_the_lock(tmp_path):
    """For as long as it takes to end."""
    held = take(tmp_path / "stack")
    (ours, theirs), fork = os.pipe(), os.fork()
    if fork == 0:
        os.close(theirs)
        os.read(ours, 1)  # has the lock until it is told to end
        os._exit(0)
    os.close(held.lock_fd)
    cleaner = threading.Thread(target=clean_up, args=(tmp_path / "stack",))
    cleaner.start()
    cleaner.join(0.05)
    assert (tmp_path / "stack" / LOCK).exists()
    os.close(theirs)
    os.waitpid(fork, 0)
    cleaner.join()
    os.close(ours)
    assert not (tmp_path / "stack").exists()
