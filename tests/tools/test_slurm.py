"""The launchers on a real Slurm of two nodes, and torchrun on two hosts with a network of their own; both as root."""

import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mmpelk.fault_tolerance.safe_loading import check_integrity
from tests.commands import find_free_port, run, wait_for
from tests.paths import TOOLS

pytestmark = pytest.mark.slow

CLUSTER = pytest.mark.cluster  # a Slurm of its own: minutes, as root
BOUND = 600  # seconds after which what hangs is a failure
DAEMONS = ('munged', 'slurmctld', 'slurmd')
SBIN = f'{os.environ["PATH"]}:/usr/sbin:/sbin'
# Two addresses of the loopback device are the nodes' names, so that each resolves as a host's name does.
NODES = ('127.0.0.1', '127.0.0.2')
SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# For as many seconds a job that was requeued waits.
AuthInfo=socket={folder}/munge.socket,cred_expire=20
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobFileAppend=1
MinJobAge=86400
ReturnToService=2
MessageTimeout=60
SlurmdTimeout=0
{nodes}
PartitionName=short Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""
# Says on which node each rank runs. With NEVER_READY the first start does not get further than here.
SAY_NODE = """
import os, time
from pathlib import Path

restart = int(os.environ.get('SLURM_RESTART_COUNT', 0))
Path(f'node{os.environ["SLURM_PROCID"]}.{restart}').write_text(os.environ['SLURMD_NODENAME'])
if 'NEVER_READY' in os.environ and not restart:
    time.sleep(3600)
"""
# The first start would take hours; a job that is requeued ends two iterations after where it goes on.
JOB = """#!/bin/bash
#SBATCH --partition=short --nodes=2 --ntasks=2 --ntasks-per-node=1 --requeue --output=log
last=4000
if [ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ]; then
    stopped=$(cat work/last_checkpoint || echo iter_0.pth)
    stopped=${{stopped##*iter_}}
    last=$((${{stopped%.pth}} + 2))
fi
exec {launcher} short 'a job' {config} --work-dir work \\
    --cfg-options train_cfg.max_iters=$last train_cfg.val_interval=$last
"""


def kill_all(processes: Callable[[], list[int]]) -> None:
    """Kill processes until there are none.

    Args:
        processes: Those that are there now; one that is being killed may have started another.
    """

    def none_left() -> bool:
        left = processes()
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return not left

    wait_for(none_left, lambda: f'processes {processes()} cannot be killed')


def processes_with(variable: str) -> list[int]:
    """Processes that were started with a variable, those of daemons that have left their parent among them.

    Args:
        variable: Its name and value, ``NAME=value``.
    """
    found = []
    for environ in Path('/proc').glob('[0-9]*/environ'):
        with contextlib.suppress(OSError):
            if variable.encode() in environ.read_bytes().split(b'\0'):
                found.append(int(environ.parent.name))
    return found


class Cluster:
    """A Slurm of two nodes on this machine.

    Args:
        folder: Of its configuration, sockets, states and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.conf = folder, folder / 'slurm.conf'
        self.env = {'SLURM_CONF': str(self.conf), 'PATH': SBIN}
        self.daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        """Start the daemons, and wait until both nodes are idle."""
        (self.folder / 'state').mkdir()
        key = self.folder / 'munge.key'
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        nodes = (f'NodeName={node} NodeAddr={node} Port={find_free_port()} CPUs=8' for node in NODES)
        self.conf.write_text(
            SLURM_CONF.format(
                host=socket.gethostname(),
                control_port=find_free_port(),
                folder=self.folder,
                nodes='\n'.join(nodes),
                names=','.join(NODES),
            )
        )
        files = {'socket': 'socket', 'pid-file': 'pid', 'log-file': 'log', 'seed-file': 'seed', 'key-file': 'key'}
        paths = (f'--{option}={self.folder}/munge.{ending}' for option, ending in files.items())
        self._start('munged', '--foreground', '--force', *paths)  # by force: the folder above is root's alone
        wait_for((self.folder / 'munge.socket').exists, self.explain)
        self._start('slurmctld', '-D', '-f', self.conf)
        for node in NODES:
            self._start('slurmd', '-D', '-f', self.conf, '-N', node)
        wait_for(lambda: self._ask('sinfo', '--noheader', '--format=%t %D') == 'idle 2', self.explain)

    def _start(self, *words: object) -> None:
        with (self.folder / 'printed').open('a') as printed:
            command = [str(word) for word in words]
            self.daemons.append(
                subprocess.Popen(
                    command, env=os.environ | self.env, stdout=printed, stderr=printed, start_new_session=True
                )
            )

    def _ask(self, *words: object) -> str:
        done = subprocess.run(
            [str(word) for word in words], env=os.environ | self.env, capture_output=True, text=True, timeout=BOUND
        )
        return done.stdout.strip()

    def explain(self) -> str:
        """The ends of the daemons' logs."""
        logs = [self.folder / 'printed', *sorted(self.folder.glob('*.log'))]
        return '\n'.join(f'{log.name}:\n{log.read_text()[-1500:]}' for log in logs)

    def stop(self) -> None:
        """Kill the daemons and all that they have started."""
        kill_all(lambda: processes_with(f'SLURM_CONF={self.conf}'))
        for daemon in self.daemons:
            daemon.wait()


class Job:
    """A batch job on two nodes.

    Args:
        cluster: Where to submit it.
        config: Of the training.
        folder: To run in.
        **variables: Environment variables of the job.
    """

    def __init__(self, cluster: Cluster, config: Path, folder: Path, **variables: str) -> None:
        self.cluster, self.log = cluster, folder / 'log'
        (folder / 'job.sh').write_text(JOB.format(launcher=TOOLS / 'slurm_train.sh', config=config))
        # Submitted as by a user, with the user's environment.
        self.number = run('sbatch', '--parsable', 'job.sh', cwd=folder, **cluster.env, **variables).strip()
        assert self.number.isdigit()

    def shows(self) -> dict[str, str]:
        """What Slurm knows of it."""
        shown = run('scontrol', '--oneliner', 'show', 'job', self.number, cwd=self.log.parent, **self.cluster.env)
        return dict(word.split('=', 1) for word in shown.split() if '=' in word)

    def explain(self) -> str:
        """The end of its log without the classes' table, which is longer than all else, and those of the daemons."""
        printed = self.log.read_text() if self.log.exists() else 'no log'
        printed = '\n'.join(line for line in printed.splitlines() if not line.startswith('|'))[-6000:]
        return f'{self.shows()}\n{printed}\n{self.cluster.explain()}'

    def wait_for(self, fact: Callable[[], bool]) -> None:
        """Wait until something is so while the job's first start runs.

        Args:
            fact: Whether it is.
        """

        def so_or_over() -> bool:
            return fact() or self.shows()['JobState'] not in ('PENDING', 'CONFIGURING', 'RUNNING')

        wait_for(so_or_over, self.explain)
        assert fact(), self.explain()

    def end(self) -> dict[str, str]:
        """Wait until it has ended for good, and return what Slurm knows of it then."""
        wait_for(lambda: self.shows()['JobState'] in ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT'), self.explain)
        return self.shows()


@pytest.fixture(scope='module')
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    missing = [name for name in (*DAEMONS, 'sbatch', 'srun', 'scontrol') if shutil.which(name, path=SBIN) is None]
    if missing:
        pytest.skip(f'no Slurm on this machine: {", ".join(missing)} not found')
    if os.geteuid() != 0:
        pytest.skip('a Slurm of its own is started by root only')
    cluster = Cluster(tmp_path_factory.mktemp('slurm'))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def variables(cluster: Cluster, tmp_path: Path) -> dict[str, str]:
    """Environment of a launcher on two nodes without GPUs."""
    return dict(
        GPUS='2', GPUS_PER_NODE='1', CPUS_PER_TASK='1', GRES='', PORT=str(find_free_port()), PYTHONPATH=str(tmp_path)
    )


@pytest.fixture
def config(tiny_config: Path, tmp_path: Path) -> Path:
    (tmp_path / 'say_node.py').write_text(SAY_NODE)
    config = tmp_path / 'two_nodes.py'
    imports = "custom_imports = dict(imports=['say_node'], allow_failed_imports=False)\n"
    config.write_text(f'_base_ = {str(tiny_config)!r}\n{imports}')
    return config


@CLUSTER
def test_a_training_on_two_nodes_and_its_test(
    cluster: Cluster, variables: dict[str, str], config: Path, tmp_path: Path
) -> None:
    launcher, words = TOOLS / 'slurm_train.sh', ('short', 'a job', config)
    log = run('timeout', BOUND, launcher, *words, '--work-dir', 'work dir', cwd=tmp_path, **(variables | cluster.env))
    assert 'Iter(train) [4/4]' in log
    assert [(tmp_path / f'node{rank}.0').read_text() for rank in (0, 1)] == list(NODES)
    checkpoint = tmp_path / 'work dir' / 'iter_4.pth'
    check_integrity(checkpoint)
    launcher, options = TOOLS / 'slurm_test.sh', (checkpoint, '--work-dir', 'tested')
    log = run('timeout', BOUND, launcher, *words, *options, cwd=tmp_path, **(variables | cluster.env))
    assert len(re.findall(r'aAcc: [\d.]+  mIoU: [\d.]+', log)) == 1, 'rank 0 alone reports'


def send(job: Job, *options: str) -> None:
    run('scancel', *options, '--signal=USR1', job.number, cwd=job.log.parent, **job.cluster.env)


# By `--batch` to the script, which is the launcher, as `sbatch --signal=B:USR1@120`; else to all processes of the step.
SENT_TO = pytest.mark.parametrize('to', [['--batch'], []], ids=['script', 'step'])


@CLUSTER
@SENT_TO
def test_a_signal_saves_and_requeues_and_the_job_resumes(
    cluster: Cluster, variables: dict[str, str], config: Path, tmp_path: Path, to: list[str]
) -> None:
    job = Job(cluster, config, tmp_path, REQUEUE='1', **variables)
    job.wait_for((tmp_path / 'work' / 'iter_2.pth').exists)
    send(job, *to)
    shown = job.end()
    assert (shown['JobState'], shown['ExitCode'], shown['Restarts']) == ('COMPLETED', '0:0', '1'), job.explain()
    printed = job.log.read_text()
    stopped = int(re.findall(r'Stopped by SIGUSR1 after iteration (\d+)|$', printed)[0])
    assert re.search(r'srun: error: .*Exited with exit code 75', printed)
    last = stopped + 2
    assert f'Iter(train) [{stopped + 1}/{last}]' in printed
    assert f'Iter(train) [{stopped}/{last}]' not in printed
    assert (tmp_path / 'work' / 'last_checkpoint').read_text().endswith(f'iter_{last}.pth')
    checkpoint = torch.load(tmp_path / 'work' / f'iter_{last}.pth', weights_only=False)
    assert {int(state['step']) for state in checkpoint['optimizer']['state'].values()} == {last}


@CLUSTER
@SENT_TO
def test_a_signal_during_the_start_requeues(
    cluster: Cluster, variables: dict[str, str], config: Path, tmp_path: Path, to: list[str]
) -> None:
    job = Job(cluster, config, tmp_path, REQUEUE='1', NEVER_READY='1', **variables)
    job.wait_for(lambda: all((tmp_path / f'node{rank}.0').exists() for rank in (0, 1)))
    send(job, *to)
    shown = job.end()
    assert (shown['JobState'], shown['ExitCode'], shown['Restarts']) == ('COMPLETED', '0:0', '1'), job.explain()
    assert all((tmp_path / f'node{rank}.1').exists() for rank in (0, 1))
    check_integrity(tmp_path / 'work' / 'iter_2.pth')


@CLUSTER
def test_without_requeue_the_job_ends_with_the_code_to_try_again_on(
    cluster: Cluster, variables: dict[str, str], config: Path, tmp_path: Path
) -> None:
    job = Job(cluster, config, tmp_path, **variables)
    job.wait_for((tmp_path / 'work' / 'iter_2.pth').exists)
    send(job, '--batch')
    shown = job.end()
    assert (shown['JobState'], shown['ExitCode'], shown['Restarts']) == ('FAILED', '75:0', '0'), job.explain()
    check_integrity(tmp_path / (tmp_path / 'work' / 'last_checkpoint').read_text())


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """Names of two network namespaces with a cable between them, and their addresses."""
    if shutil.which('ip', path=SBIN) is None:
        pytest.skip('no network namespaces on this machine: ip not found')

    def ip(*words: str) -> str:
        done = subprocess.run(
            ['ip', *words], env=os.environ | {'PATH': SBIN}, capture_output=True, text=True, timeout=BOUND
        )
        if done.returncode:
            raise OSError(f'ip {" ".join(words)}: {done.stderr.strip()}')
        return done.stdout

    def inside(name: str) -> list[int]:
        return [int(process) for process in ip('netns', 'pids', name).split()]

    found = {f'mmpelk{os.getpid()}-{host}': f'10.77.0.{host}' for host in (1, 2)}
    made = []
    try:
        try:
            for name in found:
                ip('netns', 'add', name)
                made.append(name)
            first, second = found
            ip('link', 'add', 'cable', 'netns', first, 'type', 'veth', 'peer', 'name', 'cable', 'netns', second)
        except OSError as error:
            pytest.skip(f'no network namespaces on this machine: {error}')
        for name, address in found.items():
            ip('-netns', name, 'address', 'add', f'{address}/24', 'dev', 'cable')
            for device in ('lo', 'cable'):
                ip('-netns', name, 'link', 'set', device, 'up')
        yield found
    finally:
        for name in made:
            kill_all(functools.partial(inside, name))
            ip('netns', 'delete', name)


def test_two_hosts_train(hosts: dict[str, str], tiny_config: Path, tmp_path: Path) -> None:
    """Their test by the same launcher, on one host, is in test_launchers.py."""
    port = find_free_port()

    def on(rank: int, host: str) -> str:
        variables = dict(NNODES=2, NODE_RANK=rank, MASTER_ADDR=next(iter(hosts.values())), PORT=port, PATH=SBIN)
        # gloo takes the address that the host's name resolves to, which is here the loopback device's.
        variables |= dict(GLOO_SOCKET_IFNAME='cable')
        words = [TOOLS / 'dist_train.sh', tiny_config, 1, '--work-dir', 'work']
        return run('timeout', BOUND, 'ip', 'netns', 'exec', host, *words, cwd=tmp_path, **variables)

    with ThreadPoolExecutor() as pool:
        logs = list(pool.map(on, range(2), hosts))
    check_integrity(tmp_path / 'work' / 'iter_4.pth')
    assert ['Iter(train) [4/4]' in log for log in logs] == [True, False], 'rank 0 alone reports'
