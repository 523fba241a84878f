#!/usr/bin/env python3
"""usernet's command: boot a stack, look at it, take it apart while it runs. `launcher.py --help` lists the verbs."""

from __future__ import annotations

import argparse
import sys

from cli import capture, commands, counters, impair, metrics, recording, replay, top, trace, web
from cli.tools import ToolError, host, nc, ping, ss, traceroute
from supervisor import boot, control, sandbox
from supervisor.options import Options, UsageError, from_file

# Modules that have TEXT, arguments and run, as tools do.
VERBS = {"capture": capture, "impair": impair, "counters": counters, "metrics": metrics, "top": top,
         "record": recording, "replay": replay, "trace": trace, "web": web}
TOOLS = {"ping": ping, "ss": ss, "nc": nc, "host": host, "traceroute": traceroute}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="launcher.py", description="usernet: a TCP/IP stack you can take apart while "
                                  "it runs.", allow_abbrev=False)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.add_argument("--name", metavar="N", help="which stack (default: $USERNET_NAME, else 'default')")
        return added

    up = verb("up", "boot a stack, in a sandbox of its own; in the foreground, show its events")
    up.add_argument("--detach", action="store_true", help="return once the stack answers")
    up.add_argument("--log-format", choices=("text", "json"), default="text", help="in the foreground: events as text "
                    "(default), or one JSON object a line")
    up.add_argument("--host", action="store_true", help="use this network namespace instead of a sandbox "
                    "(needs CAP_NET_ADMIN)")
    up.add_argument("--address", metavar="A/P", help="the stack's address (default 10.0.0.2/24)")
    up.add_argument("--gateway", metavar="G", help="the default gateway and kernel's end (default: the first other "
                    "host of the network)")
    up.add_argument("--mac", metavar="M", help="the stack's MAC address (default: random)")
    up.add_argument("--mtu", type=int, metavar="N", help="octets (default 1500)")
    up.add_argument("--ttl", type=int, metavar="N", help="time to live of packets whose sender sets none (default 64)")
    up.add_argument("--tap", metavar="DEV", help="name of the TAP interface (default tap0)")
    up.add_argument("--wire", metavar="W", help="join this virtual wire instead of a TAP; needs no kernel feature")
    up.add_argument("--profile", metavar="NAME", help="make it as bad as this network: 3g, wifi, satellite, ... (see "
                    "impair --help)")
    up.add_argument("--dns", metavar="A[,B]", help="name servers, for what applications ask by name")
    up.add_argument("--pipes", metavar="KIND", help="what joins the layers: zmq (libzmq by pyzmq, default) or direct "
                    "(plain Unix sockets that speak the same protocol: faster)")
    up.add_argument("--cores", metavar="MODE", help="compact, spread, auto (default), or a list like 0,1")
    up.add_argument("--reload", action="store_true", default=None, help="restart layers whose code changes on disk")
    up.add_argument("--allow-raw", action="store_true", default=None, help="let applications open raw sockets: "
                    "read and forge packets of any protocol")
    up.add_argument("--accept-redirects", action="store_true", default=None, help="follow a gateway's redirects to "
                    "another gateway")
    up.add_argument("--no-offload", action="store_true", default=None, help="plain frames at the TAP: all sums and "
                    "segments are made here")
    up.add_argument("--unlocked", action="store_true", default=None, help="for debugging: layers keep every right of "
                    "their user's")
    up.add_argument("--sysctl", action="append", metavar="NAME=VALUE", help="a default of TCP by Linux's name, such as "
                    "net.ipv4.tcp_sack=0; may be repeated")
    up.add_argument("--config", metavar="F", help="TOML file with the same options; the command line wins")

    verb("down", "stop in order; nothing is left behind")
    verb("status", "what runs, and its counters").add_argument("--json", action="store_true")
    restart = verb("restart", "planned restart, from the code as it is now on disk")
    restart.add_argument("layers", nargs="+", metavar="LAYER", help="layers, or all")
    events = verb("events", "what happened, when, to which layer, and how long the gap was")
    events.add_argument("--follow", action="store_true", help="go on with what happens next")
    events.add_argument("--json", action="store_true", help="one object a line")
    sabotage = verb("sabotage", "make a layer fail: kill, stop, loop, raise, memory, sleep")
    sabotage.add_argument("layer", metavar="LAYER")
    sabotage.add_argument("fault", metavar="FAULT")
    execute = verb("exec", "run a command on the kernel's end of the cable: exec -- ping 10.0.0.2")
    execute.add_argument("cmd", nargs="+", metavar="CMD")
    neighbor = verb("neighbor", "arp's neighbours: list, add ADDRESS MAC, del ADDRESS, flush")
    neighbor.add_argument("words", nargs="*", metavar="ORDER", help="list (default), add ADDRESS MAC, del ADDRESS, or "
                          "flush (all but those that were added)")
    route = verb("route", "the stack's routes: list, add DEST/PREFIX [via GATEWAY] ..., del DEST/PREFIX")
    route.add_argument("words", nargs="*", metavar="ORDER", help="list (default), add DEST/PREFIX [via GATEWAY] "
                       "[metric N] [src ADDRESS] [mtu N], or del DEST/PREFIX [via GATEWAY] [metric N]; also: default")
    address = verb("address", "the stack's addresses: list, add ADDRESS/PREFIX, del ADDRESS/PREFIX")
    address.add_argument("words", nargs="*", metavar="ORDER", help="list (default), add or del ADDRESS/PREFIX")
    for name, tool in {**VERBS, **TOOLS}.items():
        tool.arguments(verb(name, tool.TEXT))
    verbs.add_parser("demo", help="see it work, in ten seconds", description="see it work, in ten seconds")
    return top


def options_of(arguments: argparse.Namespace) -> Options:
    """The options of `up`: the config file's, and over them the command line's."""
    values = from_file(arguments.config) if arguments.config else {}
    for field in Options.__struct_fields__:
        given = getattr(arguments, field, None)
        if given is not None and given is not False:
            values[field] = given
    options = Options(**values)  # type: ignore[arg-type]
    options.check()
    return options


def run(arguments: argparse.Namespace) -> int:
    """Call what the verb stands for."""
    if arguments.verb == "up":
        return commands.up(options_of(arguments), arguments.detach, arguments.log_format)
    if arguments.verb == "down":
        return commands.down(arguments.name)
    if arguments.verb == "restart":
        return commands.restart(arguments.name, arguments.layers)
    if arguments.verb == "events":
        return commands.events(arguments.name, arguments.follow, arguments.json)
    if arguments.verb == "sabotage":
        return commands.sabotage(arguments.name, arguments.layer, arguments.fault)
    if arguments.verb == "exec":
        return commands.execute(arguments.name, arguments.cmd)
    if arguments.verb == "status":
        from cli import status

        return status.show(arguments.name, arguments.json)
    if arguments.verb in VERBS or arguments.verb in TOOLS:
        return {**VERBS, **TOOLS}[arguments.verb].run(arguments)
    if arguments.verb == "neighbor":
        from cli import neighbors

        return neighbors.run(arguments.name, arguments.words)
    if arguments.verb in ("route", "address"):
        from cli import routes

        return getattr(routes, arguments.verb)(arguments.name, arguments.words)
    from cli import demo

    return demo.run()


def main() -> int:
    """Run the command line; errors are one line on standard error."""
    arguments = parser().parse_args()
    try:
        return run(arguments)
    except (UsageError, ValueError) as error:  # ValueError: a name that no stack can have
        text, status = str(error), commands.USAGE
    except commands.NotRunning as error:
        text = f"no stack is running in {error}; start one with: launcher.py up --detach"
        status = commands.USAGE
    except ToolError as error:
        text, status = str(error), error.status
    except BrokenPipeError:
        return commands.FAILED
    except sandbox.SandboxError as error:
        text, status = f"{error}; or use a wire, which needs nothing of the kernel: --wire NAME", commands.FAILED
    except (boot.BootError, commands.Refused, OSError) as error:
        text, status = str(error), commands.FAILED
    print(control.printable(f"launcher.py: {text}"), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
