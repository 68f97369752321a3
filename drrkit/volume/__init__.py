"""CT volumes: values with their place in the patient, unit and labels; reading and writing."""

from drrkit.volume.attenuation import WATER_MU_PER_MM, water_attenuation
from drrkit.volume.data import BODY_THRESHOLD, Volume
from drrkit.volume.files import read_volume, write_volume
from drrkit.volume.itk import checked_header, load_simpleitk, readable_errors

__all__ = [
    "BODY_THRESHOLD",
    "WATER_MU_PER_MM",
    "Volume",
    "checked_header",
    "load_simpleitk",
    "read_volume",
    "readable_errors",
    "water_attenuation",
    "write_volume",
]
