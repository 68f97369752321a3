"""CT volumes: values with their place in the patient, unit and labels; reading and writing.

data: the Volume. files: read_volume, write_volume. nifti, nrrd_metaimage, dicom_series, dicom_file,
dicom_pixels, dicom_writing, mesh: one format each; rasters: what all of them are checked for.
resampling: other grids. attenuation: of water.
"""

from drrkit.files import FileWarning
from drrkit.volume.attenuation import CT_ENERGY_KEV, WATER_MU_PER_MM, water_attenuation
from drrkit.volume.data import BODY_THRESHOLD, Volume
from drrkit.volume.dicom_file import DicomFile, is_dicom, named
from drrkit.volume.dicom_pixels import check_size, coded_size, stored_pixels
from drrkit.volume.files import (
    READ_SUFFIXES,
    inspect_volume,
    read_image,
    read_volume,
    write_volume,
)
from drrkit.volume.mesh import UNITS_MM, mesh_volume, read_mesh
from drrkit.volume.rasters import MOST_PIXELS, readable_errors

__all__ = [
    "BODY_THRESHOLD",
    "CT_ENERGY_KEV",
    "MOST_PIXELS",
    "READ_SUFFIXES",
    "UNITS_MM",
    "WATER_MU_PER_MM",
    "DicomFile",
    "FileWarning",
    "Volume",
    "check_size",
    "coded_size",
    "inspect_volume",
    "is_dicom",
    "mesh_volume",
    "named",
    "read_image",
    "read_mesh",
    "read_volume",
    "readable_errors",
    "stored_pixels",
    "water_attenuation",
    "write_volume",
]
