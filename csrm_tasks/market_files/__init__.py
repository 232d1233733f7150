"""Market files for people: the reference of their keys, a first one, and what is wrong with one."""
