"""Real X-rays from files, with their cameras.

files: read_xray, for all formats. dicom, pictures, deepfluoro: one format each. calibration:
cameras from files, with opencv_storage and distortion.
"""
