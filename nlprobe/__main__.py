"""`python -m nlprobe` is the command `nlprobe`; `torchrun -m nlprobe train …` starts it in several processes."""

from nlprobe.cli import main

if __name__ == "__main__":
    main()
