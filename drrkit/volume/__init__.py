"""CT volumes: values with their place in the patient, unit and labels; reading and writing."""

from drrkit.volume.attenuation import WATER_MU_PER_MM, water_attenuation
from drrkit.volume.data import Volume
from drrkit.volume.files import read_volume, write_volume

__all__ = ["WATER_MU_PER_MM", "Volume", "read_volume", "water_attenuation", "write_volume"]
