"""The version, in a file of its own: nothing in the library imports the root."""

__version__ = "0.1.0"
