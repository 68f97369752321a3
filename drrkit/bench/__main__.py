"""`python -m drrkit.bench` is `drrkit bench` without the packages that only the others need."""

from drrkit.bench.command import main

if __name__ == "__main__":
    raise SystemExit(main())
