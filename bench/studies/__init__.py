"""Studies: experiments whose numbers the documentation quotes; `python -m bench.studies` runs them.

A study is a module of this folder with

    THREADS = 2                  torch's threads, unless --threads says otherwise (1 if missing)
    def options(add): ...        its options; `add` is ArgumentParser.add_argument
    def run(options): ...        what it does; what it returns is the exit code

or a package whose __main__.main(words) does everything itself. study.py holds what they share. The
first line of the docstring is the summary in the list, all of it the help.
"""
