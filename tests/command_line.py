"""Running the scripts in this process, as the command line would."""

import importlib.util
from pathlib import Path

from utils.errors import exit_cleanly

ROOT = Path(__file__).resolve().parent.parent


def load_script(name):
    """The script as a module; `import test` would be the standard library's."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(main, *argv):
    """Runs a script's main as the command line would, and returns its exit status."""
    try:
        exit_cleanly(lambda: main([str(a) for a in argv]))
    except SystemExit as end:
        return end.code
    return 0
