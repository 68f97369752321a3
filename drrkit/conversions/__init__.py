"""Named converters to and from the conventions of other tools.

Each pair `to_X` and `from_X` is exact both ways. Every `from_X` returns a CameraView: the camera,
the poses [B, 4, 4] float64 in patient LPS, and the dimensions along which the other tool's image
is flipped to become drrkit's.
"""

from drrkit.conversions.angles import euler_to_matrix, lps_from_ras, matrix_to_euler
from drrkit.conversions.carm import (
    DicomAngles,
    from_dicom_angles,
    from_prost,
    prost_scale,
    to_dicom_angles,
    to_prost,
)
from drrkit.conversions.diffdrr import DiffdrrView, from_diffdrr, to_diffdrr
from drrkit.conversions.jointtrack import (
    read_jointtrack,
    read_jointtrack_calibration,
    write_jointtrack,
    write_jointtrack_calibration,
)
from drrkit.conversions.landmark_files import read_landmark_rows
from drrkit.conversions.mayacam import read_mayacam, write_mayacam
from drrkit.conversions.pinhole import (
    DeepdrrView,
    DeepfluoroView,
    NanodrrView,
    PinholeView,
    XregView,
    from_deepdrr,
    from_deepfluoro,
    from_nanodrr,
    from_opencv,
    from_xreg,
    to_deepdrr,
    to_deepfluoro,
    to_nanodrr,
    to_opencv,
    to_xreg,
)
from drrkit.conversions.rtk_geometry import read_rtk_geometry, write_rtk_geometry
from drrkit.conversions.tomography import (
    LeapView,
    PlastimatchView,
    RtkView,
    TigreView,
    from_astra,
    from_leap,
    from_plastimatch,
    from_rtk,
    from_tigre,
    to_astra,
    to_leap,
    to_plastimatch,
    to_rtk,
    to_tigre,
)
from drrkit.conversions.transforms import (
    read_autoscoper,
    read_itk_transform,
    write_autoscoper,
    write_itk_transform,
)
from drrkit.conversions.vectors import CameraView, ViewVectors, from_vectors, to_vectors

__all__ = [
    "CameraView",
    "DeepdrrView",
    "DeepfluoroView",
    "DicomAngles",
    "DiffdrrView",
    "LeapView",
    "NanodrrView",
    "PinholeView",
    "PlastimatchView",
    "RtkView",
    "TigreView",
    "ViewVectors",
    "XregView",
    "euler_to_matrix",
    "from_astra",
    "from_deepdrr",
    "from_deepfluoro",
    "from_dicom_angles",
    "from_diffdrr",
    "from_leap",
    "from_nanodrr",
    "from_opencv",
    "from_plastimatch",
    "from_prost",
    "from_rtk",
    "from_tigre",
    "from_vectors",
    "from_xreg",
    "lps_from_ras",
    "matrix_to_euler",
    "prost_scale",
    "read_autoscoper",
    "read_itk_transform",
    "read_jointtrack",
    "read_jointtrack_calibration",
    "read_landmark_rows",
    "read_mayacam",
    "read_rtk_geometry",
    "to_astra",
    "to_deepdrr",
    "to_deepfluoro",
    "to_dicom_angles",
    "to_diffdrr",
    "to_leap",
    "to_nanodrr",
    "to_opencv",
    "to_plastimatch",
    "to_prost",
    "to_rtk",
    "to_tigre",
    "to_vectors",
    "to_xreg",
    "write_autoscoper",
    "write_itk_transform",
    "write_jointtrack",
    "write_jointtrack_calibration",
    "write_mayacam",
    "write_rtk_geometry",
]
