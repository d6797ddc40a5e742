"""The node as a machine: its mounts, its network, and the end of its containers."""

import shutil
import subprocess
import time
from pathlib import Path

from mlctl.base.waiting import within
from mlctl.cluster.embedded import outbound
from mlctl.cluster.embedded.config import NODE_NAME, Config
from mlctl.cluster.embedded.config_files import BRIDGE

CONTAINER_STOP_SECONDS = 4
"""A database ends in less. Pages take half a minute to see their clients off, which nobody waits
for; and what is killed loses nothing that it has written: the host goes on running.
"""


def private_directories(config: Config) -> dict[Path, Path]:
    """Return the host directories that programs insist on, with what the node sees there."""
    return {
        Path("/var/lib/kubelet"): config.state / "kubelet",
        Path("/var/lib/cni"): config.run / "cni-cache",
        Path("/var/log"): config.log / "var-log",
    }


def set_up_mounts(config: Config) -> None:
    """Give the node a /run, /var/log and kubelet directory of its own."""
    shutil.rmtree(config.run, ignore_errors=True)
    for directory in (config.run, config.log, config.volumes, config.training_storage):
        directory.mkdir(parents=True, exist_ok=True)
    # Task pods of any user write here. No sticky bit: the kubelet gives this mode to directories of
    # runs, which it makes as root, and with the bit no pod could remove them.
    config.training_storage.chmod(0o777)
    for target, source in private_directories(config).items():
        source.mkdir(parents=True, exist_ok=True)
        call("mount", "--bind", str(source), str(target))
    call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    Path("/run/lock").mkdir()


def set_up_network(config: Config) -> None:
    """Make the loopback, the pods' bridge and the routes of the node's own network."""
    call("hostname", NODE_NAME)
    call("ip", "link", "set", "lo", "up")
    call("ip", "link", "add", BRIDGE, "type", "bridge")
    prefix = config.pod_cidr.partition("/")[2]
    call("ip", "address", "add", f"{config.node_ip}/{prefix}", "dev", BRIDGE)
    call("ip", "link", "set", BRIDGE, "up")
    # kube-proxy rewrites Service addresses on the way out, so they must have a way out.
    call("ip", "route", "add", config.service_cidr, "dev", BRIDGE)
    for key in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        path = Path("/proc/sys") / key
        if path.exists():
            path.write_text("1")
    call("iptables", "-P", "FORWARD", "ACCEPT")
    # Without the link it matches nothing; the link may come later.
    call(*outbound.masquerade(config))


def call(*command: str) -> None:
    """Run a command of the host; its output is in the supervisor's log."""
    subprocess.run(command, check=True)


def stop_containers(config: Config) -> None:
    """End every container: its image's stop signal (or SIGTERM), some seconds, SIGKILL."""
    ctr = ["ctr", "--address", str(config.containerd_socket), "--namespace", "k8s.io", "tasks"]

    def running() -> list[str]:
        result = subprocess.run([*ctr, "list"], capture_output=True, text=True)
        rows = [line.split() for line in result.stdout.splitlines()[1:]]
        return [row[0] for row in rows if len(row) == 3 and row[2] == "RUNNING"]

    def kill(name: str, *options: str) -> None:
        everybody = running()
        if everybody:
            say(f"{name} to {len(everybody)} containers")
        kills = [
            subprocess.Popen([*ctr, "kill", *options, container], stderr=subprocess.DEVNULL)
            for container in everybody
        ]
        for process in kills:
            process.wait()

    kill("stop signal")
    within(CONTAINER_STOP_SECONDS, lambda: not running())
    kill("SIGKILL", "--signal", "SIGKILL")


def say(text: str) -> None:
    """Write a line to the supervisor's log."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}", flush=True)
