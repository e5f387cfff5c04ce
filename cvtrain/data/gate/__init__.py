"""The check that every data set passes before anything is made of it."""
