"""Tables larger than the accelerator: row stores below the device, and the caches before them.

Empty in this release: tables fit the device until the modules of this package are written.
"""
