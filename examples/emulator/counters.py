"""Prints the counters that stand on standard input as JSON: a line for each kernel."""

import json
import sys

COLUMNS = {
    "sectors/load": ("global_load_units", "global_load_requests"),
    "sectors/store": ("global_store_units", "global_store_requests"),
    "ways/shared load": ("shared_load_units", "shared_load_ideal"),
    "ways/shared store": ("shared_store_units", "shared_store_ideal"),
}

print(" " * 24, *COLUMNS, sep="  ")
for kernel in json.load(sys.stdin):
    cells = [kernel["kernel"].ljust(24)]
    for heading, (over, under) in COLUMNS.items():
        ratio = kernel[over] / kernel[under] if kernel[under] else 0
        cells.append(f"{ratio:.2f}".rjust(len(heading)) if ratio else "-".rjust(len(heading)))
    print(*cells, sep="  ")
