"""The gauntlet: registration of X-rays that share nothing with the moving volume.

    DRRKIT_DATA=... python -m bench.studies.gauntlet --develop --name mine
    python -m bench.studies.gauntlet --table mine

X-rays are simulated by a chain of this folder alone: its own projector, materials, spectrum,
scatter, detector and grids. drrkit reads the CT, draws the phantoms and registers; none of its code
makes an image. `physics`, `solids` and `projector` are the chain; `subjects`, `scenes` and
`conditions` what it shows; `cases` one X-ray with its start; `running` and `tables` what becomes of
it.
"""
