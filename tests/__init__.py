"""The tests. A test module is imported by its full name: two folders may hold modules of the same name."""
