"""`python -m benchmarks` runs every benchmark module and fails when a row of any falls short."""

import subprocess
import sys

MODULES = ("start", "kernels", "blocks", "probe")


def main() -> int:
    """Run the modules one after the other; 1 when one of them fails."""
    failed = []
    for module in MODULES:
        print(f"== benchmarks.{module}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *sys.argv[1:]], check=False).returncode:
            failed.append(module)
    if failed:
        print(f"fell short: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
