"""`python -m drrkit` is the command `drrkit`."""

from drrkit.cli import main

if __name__ == "__main__":
    main(prog_name="drrkit")
