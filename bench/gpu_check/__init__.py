"""What a GPU can tell about drrkit in eight minutes; bench/gpu_check.sh runs the stages.

    python -m bench.gpu_check STAGE [--dry-run]     one stage: import, smoke, streams or speed
    python -m bench.gpu_check summary FOLDER NAME:EXIT_CODE:SECONDS ...

With --dry-run the CUDA kernels run on the CPU, by tests/emulator, at small sizes: it shows that the
stages work, and nothing about a GPU. Needs torch, numpy, pytest and a C++ compiler for the dry run.
"""
