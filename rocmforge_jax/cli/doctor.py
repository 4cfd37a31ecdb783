"""The command `doctor`."""

import dataclasses

from rocmforge_jax.cli import common
from rocmforge_jax.cli.machine import gather
from rocmforge_jax.cli.problems import problems

NAME = "doctor"
HELP = "Show versions, devices, what each operation runs on, and known problems with remedies."


def add_arguments(parser):
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options):
    facts = gather()
    found = list(problems(facts))
    report = {
        "versions": facts.versions,
        "devices": facts.devices,
        "operations": facts.operations,
        "problems": [dataclasses.asdict(problem) for problem in found],
    }
    if options.json:
        common.print_json(report)
        return
    for title in ("versions", "operations"):
        print(f"{title}:")
        for name, value in report[title].items():
            print(f"  {name:<18} {value}")
    print("devices:")
    for device in facts.devices:
        memory = (
            f", {device['memory_bytes'] / 2**30:.1f} GiB free" if device["memory_bytes"] else ""
        )
        print(f"  {device['platform']:<18} {device['kind']}{memory}")
    print("problems:" if found else "problems: none known")
    for problem in found:
        print(
            f"  {'' if problem.certain else 'known of such machines: '}{problem.what}\n    ->"
            f" {problem.remedy}"
        )
