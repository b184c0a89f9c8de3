"""One click command a file, named `command`; `nlprobe.cli` imports them when they are used."""
