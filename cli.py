"""`python cli.py …` from a checkout does what the installed command `nlprobe …` does."""

from nlprobe.cli import main

if __name__ == "__main__":
    main()
