"""`python -m benchmarks` runs every benchmark module and fails when a row of any falls short."""

import subprocess
import sys

MODULES = ("start", "kernels", "blocks", "probe", "attention", "loading", "training")


def main() -> int:
    """Run the modules one after the other; 1 when one of them fails."""
    codes = {}
    for module in MODULES:
        print(f"== benchmarks.{module}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{module}", *sys.argv[1:]]
        codes[module] = subprocess.run(command, check=False).returncode
    # 2: no row of that module was asked for
    failed = [module for module, code in codes.items() if code not in (0, 2)]
    if failed:
        print(f"fell short: {', '.join(failed)}")
    return 1 if failed or set(codes.values()) == {2} else 0


if __name__ == "__main__":
    raise SystemExit(main())
