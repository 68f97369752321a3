"""X-ray images: real ones from files; simulated ones, from plain to realistic."""

from drrkit.xray.deepfluoro import (
    DEEPFLUORO_BONES,
    DeepfluoroSpecimen,
    DeepfluoroXray,
    deepfluoro_contents,
    read_deepfluoro_specimen,
    read_deepfluoro_xray,
)
from drrkit.xray.detector import Signal, add_noise, add_scatter, beer_lambert, gaussian_blur
from drrkit.xray.materials import (
    DENSITIES,
    SPECTRA,
    MaterialVolume,
    checked_spectrum,
    hu_to_density,
    mass_attenuation,
    tissue_materials,
)
from drrkit.xray.preprocessing import PreprocessedXray, bone_is_bright, preprocess_xray
from drrkit.xray.randomisation import (
    CdregRandomisation,
    DomainRandomisation,
    Randomisation,
    min_max,
    randomise,
)
from drrkit.xray.reading import XRAY_KINDS, Xray, read_xray
from drrkit.xray.synthesis import XrayModel, motion_path, synthesise_xray
from drrkit.xray.targets import TargetSynthesis
from drrkit.xray.tools import PlacedTool, Tool, k_wire, random_tool_pose, rod, screw
from drrkit.xray.two_materials import (
    BONE_MU_PER_MM,
    SPECTRUM_90KV,
    bone_attenuation,
    simulate_xray,
    split_materials,
)

__all__ = [
    "BONE_MU_PER_MM",
    "DEEPFLUORO_BONES",
    "DENSITIES",
    "SPECTRA",
    "SPECTRUM_90KV",
    "XRAY_KINDS",
    "CdregRandomisation",
    "DeepfluoroSpecimen",
    "DeepfluoroXray",
    "DomainRandomisation",
    "MaterialVolume",
    "PlacedTool",
    "PreprocessedXray",
    "Randomisation",
    "Signal",
    "TargetSynthesis",
    "Tool",
    "Xray",
    "XrayModel",
    "add_noise",
    "add_scatter",
    "beer_lambert",
    "bone_attenuation",
    "bone_is_bright",
    "checked_spectrum",
    "deepfluoro_contents",
    "gaussian_blur",
    "hu_to_density",
    "k_wire",
    "mass_attenuation",
    "min_max",
    "motion_path",
    "preprocess_xray",
    "random_tool_pose",
    "randomise",
    "read_deepfluoro_specimen",
    "read_deepfluoro_xray",
    "read_xray",
    "rod",
    "screw",
    "simulate_xray",
    "split_materials",
    "synthesise_xray",
    "tissue_materials",
]
