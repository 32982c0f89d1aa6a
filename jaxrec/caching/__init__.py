"""Tables larger than the accelerator: row stores on host, disk and remote memory, and the caches
before them. Empty in this release; tables fit the device until the modules of this package are
written."""
