"""From the command line to a running keeper."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from bus.config import WIRE_OFFLOAD
from supervisor import control, limits, sandbox
from supervisor.errors import BootError, Busy
from supervisor.options import Options
from supervisor.run_dir import leave, take
from usernet.pipe.messages import inbox_name
from usernet.pipe.run_dir import INBOXES, Untrusted, check

SUN_PATH_MAX = 107  # unix(7): 108 octets with the closing zero


def check_run_dir(run_dir: Path, variable: str = "USERNET_DIR") -> None:
    """BootError: the path is too long for socket files, or other users can enter the directory; `variable` is named as
    the remedy."""
    longest = len(os.fsencode(run_dir / INBOXES / inbox_name((1 << 53) - 1)))
    if longest > SUN_PATH_MAX:
        raise BootError(f"{run_dir} is too long for socket files by {longest - SUN_PATH_MAX} characters; "
                        f"set {variable} to a shorter path")
    try:
        os.close(check(run_dir))
    except FileNotFoundError:
        pass  # it does not exist yet; it is checked again when it is created
    except Untrusted as error:
        raise BootError(str(error.strerror).replace("USERNET_DIR", variable)) from None


def start_keeper(options: Options, run_dir: Path) -> dict[str, Any]:
    """Fork a keeper and wait until its stack serves. Returns {"pid"}.

    SandboxError: no TAP is available. BootError: any other failure.
    """
    limits.check(options.implementation())
    check_run_dir(run_dir)
    if options.wire:
        for directory in (options.wire_dir().parent, options.wire_dir()):
            check_run_dir(directory, "XDG_RUNTIME_DIR")
    answers, tell = os.pipe2(os.O_CLOEXEC)
    mapped, map_done = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError as error:
        raise BootError(f"cannot start: {limits.explain(error)}") from error
    if pid == 0:
        os.close(answers)
        os.close(map_done)
        _keep(options, run_dir, tell, mapped)
    os.close(tell)
    os.close(mapped)
    try:
        _until_it_serves(pid, answers, map_done)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)  # so that nothing of it is left when the caller knows
        raise
    return {"pid": pid}


def _until_it_serves(pid: int, answers: int, map_done: int) -> None:
    """Wait for the keeper `pid`, and map users into its sandbox when it asks for that."""
    with os.fdopen(answers, "rb") as lines, os.fdopen(map_done, "wb", 0) as done:
        for line in lines:
            answer = msgspec.json.decode(line)
            if answer == "map":
                try:
                    sandbox.Sandbox.map_users(pid)
                except OSError as error:
                    raise BootError(f"cannot map users into the sandbox: {error.strerror}") from error
                done.write(b"!")
            elif "no_device" in answer:
                raise sandbox.SandboxError(answer["no_device"])
            elif "busy" in answer:
                raise Busy(answer["busy"])
            elif "error" in answer:
                raise BootError(answer["error"])
            else:
                return
    raise BootError("the keeper ended before the stack was up")


def _keep(options: Options, run_dir: Path, tell: int, mapped: int) -> NoReturn:
    """The keeper's process, from fork to exit."""

    def say(message: object) -> None:
        try:
            os.write(tell, msgspec.json.encode(message) + b"\n")
        except BrokenPipeError:
            pass  # the process that started the keeper has ended; the stack stays

    status = 1
    try:
        os.setsid()
        os.umask(0o077)  # independent of the caller's
        _detach_standard_streams()
        first = 3  # close the caller's descriptors: a lock, or a pipe whose end another process waits for
        for kept in sorted((tell, mapped)):
            os.closerange(first, kept)
            first = kept + 1
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
        front = control.claim(run_dir)  # in the network namespace of the caller
        device_fd = -1
        offload: tuple[str, ...] = ()
        if options.wire:
            offload = () if options.no_offload else WIRE_OFFLOAD
        else:
            if not options.host:
                sandbox.Sandbox.enter()
                say("map")
                if os.read(mapped, 1) != b"!":
                    os._exit(1)
            device_fd, offload = sandbox.open_tap(options.tap, not options.no_offload)
            if not options.host:
                sandbox.configure("lo", None)
                sandbox.quiet_ipv6(options.tap)
            sandbox.configure(options.tap, options.kernel_end(), options.mtu)
        os.close(mapped)
        from supervisor import cleanup, keeper  # imports all layers: only here, after the steps that may fail early

        cleanup_process = cleanup.CleanupProcess(options.name, run_dir)
        try:
            held = take(run_dir)
        except Untrusted as error:
            say({"error": error.strerror})
            os._exit(1)
        except OSError:
            leave(run_dir)
            raise
        held.sweep()

        def ready() -> None:
            say({"ok": True})
            os.close(tell)

        try:
            made = keeper.Keeper(options, held, device_fd, offload, cleanup_process, front)
        except BaseException:
            cleanup_process.finish(held)
            raise
        made.run(ready)
        status = 0
    except BlockingIOError:
        say({"busy": f"another stack is starting or stopping in {run_dir}"})
    except sandbox.SandboxError as error:
        say({"no_device": str(error)})
    except BootError as error:
        say({"error": str(error)})
    except OSError as error:
        say({"error": f"cannot start: {limits.explain(error, run_dir)}"})
        traceback.print_exc(file=sys.stderr)
    except Exception:
        say({"error": f"the keeper failed: {traceback.format_exc()}"})
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(status)


def _detach_standard_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
    if not os.environ.get("USERNET_DEBUG"):
        os.dup2(null, 2)
    os.close(null)
