"""`python -m tests.server.fake_server SETTINGS`: a real server in front of a fake engine.

With `modules` in the settings, prints what the server process has imported when it ends.
"""

from __future__ import annotations

import sys

import msgspec

from chiplet.config import EngineConfig, ServerOptions
from chiplet.errors import ChipletError
from chiplet.server.processes import ChildCommands
from chiplet.server.start import serve

COMMANDS = ChildCommands(engine=(sys.executable, "-m", "tests.server.fake_engine_process"))


class Settings(msgspec.Struct, frozen=True):
    config: EngineConfig
    options: ServerOptions


def main() -> int:
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    try:
        code = serve(settings.config, settings.options, COMMANDS)
    except ChipletError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print("modules:", *sorted(sys.modules))
    return code


if __name__ == "__main__":
    sys.exit(main())
