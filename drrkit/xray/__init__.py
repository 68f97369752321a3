"""X-ray images: real ones from files; simulated ones, from plain to realistic.

read/: files of X-rays and their cameras. prepare: polarity, logarithm, shutters, scale and crop of
a real X-ray. field: its open field. simulate/: X-rays of a CT.
"""

from drrkit.xray.field import open_field
from drrkit.xray.prepare import PreprocessedXray, bone_is_bright, preprocess_xray
from drrkit.xray.read.calibration import read_calibration
from drrkit.xray.read.deepfluoro import (
    DEEPFLUORO_BONES,
    DeepfluoroSpecimen,
    DeepfluoroXray,
    deepfluoro_contents,
    read_deepfluoro_specimen,
    read_deepfluoro_xray,
)
from drrkit.xray.read.files import (
    DICOM_SUFFIXES,
    RASTER_SUFFIXES,
    read_xray,
)
from drrkit.xray.read.localizer import Localizer, read_localizer
from drrkit.xray.read.opencv_storage import STORAGE_SUFFIXES
from drrkit.xray.read.pictures import PICTURE_SUFFIXES
from drrkit.xray.read.xray import XRAY_KINDS, Xray
from drrkit.xray.simulate.materials import (
    DENSITIES,
    SPECTRA,
    MaterialVolume,
    checked_spectrum,
    mass_attenuation,
    tissue_materials,
)
from drrkit.xray.simulate.randomisation import (
    CdregRandomisation,
    DomainRandomisation,
    Randomisation,
    TargetSynthesis,
    randomise,
)
from drrkit.xray.simulate.simulation import (
    Signal,
    add_noise,
    add_scatter,
    beer_lambert,
    gaussian_blur,
    motion_path,
    simulate_xray,
)
from drrkit.xray.simulate.tools import PlacedTool, Tool, k_wire, random_tool_pose, rod, screw

__all__ = [
    "DEEPFLUORO_BONES",
    "DENSITIES",
    "DICOM_SUFFIXES",
    "PICTURE_SUFFIXES",
    "RASTER_SUFFIXES",
    "SPECTRA",
    "STORAGE_SUFFIXES",
    "XRAY_KINDS",
    "CdregRandomisation",
    "DeepfluoroSpecimen",
    "DeepfluoroXray",
    "DomainRandomisation",
    "Localizer",
    "MaterialVolume",
    "PlacedTool",
    "PreprocessedXray",
    "Randomisation",
    "Signal",
    "TargetSynthesis",
    "Tool",
    "Xray",
    "add_noise",
    "add_scatter",
    "beer_lambert",
    "bone_is_bright",
    "checked_spectrum",
    "deepfluoro_contents",
    "gaussian_blur",
    "k_wire",
    "mass_attenuation",
    "motion_path",
    "open_field",
    "preprocess_xray",
    "random_tool_pose",
    "randomise",
    "read_calibration",
    "read_deepfluoro_specimen",
    "read_deepfluoro_xray",
    "read_localizer",
    "read_xray",
    "rod",
    "screw",
    "simulate_xray",
    "tissue_materials",
]
