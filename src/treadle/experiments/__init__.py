"""Experiments from the literature, one small declarative file each; `treadle reproduce NAME` runs one."""
