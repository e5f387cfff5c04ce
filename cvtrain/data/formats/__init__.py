"""Readers, one per on-disk format; each fills the packed table of ``cvtrain.data.table``."""
