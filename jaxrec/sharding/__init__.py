"""The same tables over many devices: mesh, plan, planner, rules and exchange.

Empty in this release: tables live on one device until the modules of this package are written.
"""
