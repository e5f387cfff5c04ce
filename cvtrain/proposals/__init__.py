"""Class-agnostic boxes that may hold objects: selective search, files of boxes, their recall."""
