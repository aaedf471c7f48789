"""The executor: it carries out the core's actions.

Rules: :meth:`Executor.execute` names every action, one line for each. No action waits. One that cannot be done leads to
an event (:meth:`Executor.give_up`), as does everything that comes of the others.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from dataclasses import replace
from functools import partial
from typing import Any

from zdworker import gunicorn_config, syscalls, texts
from zdworker.core import events
from zdworker.core.events import KillReason, Outcome
from zdworker.core.fleet import Purpose, WorkerState
from zdworker.core.history import Kind
from zdworker.errors import GenerationError, SettingError
from zdworker.exhaustive import assert_never
from zdworker.forkserver.local import LocalGeneration
from zdworker.ipc.channel import Channel
from zdworker.ipc.hand_over import HandOverQueue
from zdworker.ipc.messages import WORKER_REPORT_BYTES, CountAnswers, Drained, HookData, Leave, Spawn
from zdworker.master import launch, stacks
from zdworker.master.background import Call, call_in_background
from zdworker.master.children import ForkServer, WorkerRecord
from zdworker.master.listeners import HANDSHAKE_S
from zdworker.master.observers import Observer, Reload
from zdworker.master.parts import Parts
from zdworker.master.receiver import Receiver
from zdworker.master.reconfiguration import Evaluated
from zdworker.master.status import serving_generation
from zdworker.versions import behind, versions

HOOK_DATA_BYTES = 16 * 1024
"""Bytes that an attribute set by a hook may have as JSON: it is sent whenever a hook changes it."""

STACK_S = 0.2
"""Seconds that a process which hangs in its boot has to write its stack, before it is killed."""

SIBLING_BYTES = 256
"""Bytes that an attribute set on a worker may have for hooks in other workers to see it: each of them gets it."""


class Executor:
    """What can be done to fork servers, workers and the configuration.

    :param receiver: reads what the processes send that are started here.
    :param command: what a fork server runs, or None: workers are forked from the master.
    """

    def __init__(self, parts: Parts, receiver: Receiver, command: launch.Command | None) -> None:
        self.halt: events.Halt | None = None
        """Set when the master has to end."""
        self._gunicorn = parts.gunicorn
        self._log: Any = parts.gunicorn.log
        self._fleet = parts.fleet
        self._children = parts.children
        self._observers = parts.observers
        self._reactor = parts.reactor
        self._queues = parts.queues
        self._publish = parts.publish
        self._receiver = receiver
        self._command = command
        self._local: dict[int, LocalGeneration] = {}
        self._evaluations: dict[int, Call] = {}
        self._reloads: dict[int, Reload] = {}
        self._warned: set[str] = set()

    def execute(self, action: events.Action) -> None:  # noqa: C901, PLR0912  # one line for each action
        """Carry out an action."""
        match action:
            case events.StartGeneration():
                self._start_generation(action.generation)
            case events.EndGeneration():
                self._end_generation(action.generation)
            case events.LocateHang():
                self._locate_hang(action)
            case events.TakeConfiguration():
                self._take_configuration(action)
            case events.RestoreConfiguration():
                self._restore_configuration(action.configuration)
            case events.Spawn():
                self._spawn(action)
            case events.Drain():
                self._drain(action)
            case events.Kill():
                self._kill(action)
            case events.ReloadStarted():
                self._reload_started(action)
            case events.CanaryReady():
                self._canary_ready(action)
            case events.ReloadFinished():
                self._reload_finished(action)
            case events.Degraded():
                self._degraded(action)
            case events.Halt():
                self.halt = action
                self._reactor.wake()
            case _:
                assert_never(action)

    def resume(self) -> None:
        """Go on in the place of an earlier program of this process: what it had put off is put off once more."""
        for record in list(self._children.workers.values()):
            known = self._fleet.workers.get(record.worker_id)
            if known is not None and known.killed and record.descendants is None:  # its stack was asked for
                self._kill_if_there(record)
            told = known is not None and known.told and known.state is WorkerState.DRAINING
            if told and self._owns_a_socket_that_goes(record) and not record.is_announced(Leave):
                self._drain_with_socket(record, time.monotonic())

    def give_up(self, action: events.Action, error: BaseException) -> None:
        """Let the core know that an action could not be carried out, where it waits for what would have come of it.

        Nothing comes of most actions, and ``Drain`` and ``Kill`` are followed by a further ``Kill`` in any case.
        """
        reason = texts.reason(error)
        match action:
            case events.StartGeneration(generation):
                self._end_generation(generation)
                self._publish(events.GenerationFailed(generation, f"no fork server can be started: {reason}"))
            case events.LocateHang(generation, overdue):
                self._publish(events.GenerationFailed(generation, overdue))
            case events.TakeConfiguration(generation):
                refusal = f"the configuration cannot be taken over: {reason}"
                self._publish(events.ConfigurationRefused(generation, refusal))
            case events.Spawn(worker_id):
                record = self._children.workers.get(worker_id)
                if record is not None:
                    self._children.remove_worker(record)
                self._publish(events.WorkerGone(worker_id, f"could not be ordered: {reason}"))
            case _:
                pass

    # -- generations ---------------------------------------------------------------------------------------------

    def _start_generation(self, number: int) -> None:
        configuration = self._gunicorn.zd_configuration
        if self._command is None:
            configuration.offer(number, {}, None)
            self._local[number] = self._local_generation(number)
            self._publish(events.GenerationLoaded(number, preloaded=False))
            return
        loading = self._fleet.loading
        try:
            if loading is not None and loading.purpose is Purpose.RELOAD:  # not for a fork server that has died
                launch.refuse_changed_archive(self._command)
            hooked = configuration.hook_environment.changes()
            file, show = configuration.current.file, self._gunicorn.zd_print
            server = launch.start_generation(number, self._command, file, hooked, self._log, show)
        except (OSError, ValueError, GenerationError) as error:
            self._publish(events.GenerationFailed(number, f"no fork server can be started: {error}"))
            return
        self._children.add_server(server, self._receiver.receive_from_server)

    def _local_generation(self, number: int) -> LocalGeneration:
        configuration = self._gunicorn.zd_configuration
        cfg = configuration.current.cfg
        return LocalGeneration(
            number, os.getpid(), configuration.app, cfg, self._log, configuration.current.settings, cfg.worker_class
        )

    def _end_generation(self, number: int) -> None:
        self._gunicorn.zd_configuration.withdraw(number)
        self._local.pop(number, None)
        self._evaluations.pop(number, None)
        server = self._children.servers.get(number)
        if server is not None:
            if number in self._reloads:
                self._reloads[number].label = server.label  # a reload that is turned back ends after its fork server
            self._children.end_server(server)
            self._receiver.call_off_boots(number)

    def _locate_hang(self, action: events.LocateHang) -> None:
        """Have a generation's threads write their stacks, or look at the thread that evaluates its configuration."""
        self._log.critical("Generation %s %s: its stack follows, and it is ended", action.generation, action.reason)
        server = self._children.servers.get(action.generation)
        evaluation = self._evaluations.get(action.generation)
        if evaluation is not None:
            stack = stacks.of_thread(evaluation.ident)
            self._gunicorn.zd_print(texts.printed(stack))
            self._give_up_hanging(action, stack)
        elif server is not None:
            printed = server.printed_characters
            server.signal(syscalls.STACK_SIGNAL)
            self._reactor.call_later(STACK_S, partial(self._read_stack, action, server, printed))
        else:
            self._give_up_hanging(action, "")

    def _read_stack(self, action: events.LocateHang, server: ForkServer, printed: int) -> None:
        server.read_stderr()
        self._give_up_hanging(action, server.printed_since(printed))

    def _give_up_hanging(self, action: events.LocateHang, stack: str) -> None:
        known = self._fleet.generations.get(action.generation)
        if known is None or not known.overdue:
            return  # it is gone, or has loaded in the meantime
        place = stacks.where(stack)
        reason = f"{action.reason}: it hangs at {place}" if place else action.reason
        self._publish(events.GenerationFailed(action.generation, reason, stacks.of_application(stack)))

    # -- the configuration ---------------------------------------------------------------------------------------

    def _take_configuration(self, action: events.TakeConfiguration) -> None:
        configuration = self._gunicorn.zd_configuration
        if configuration.is_kept(action.configuration):
            self._take_evaluated(action, None)
            return
        server = self._children.servers.get(action.generation)
        # In a thread, because the loop has to go on however long the configuration takes, or if it never ends.
        self._evaluations[action.generation] = call_in_background(
            self._reactor,
            lambda: self._evaluate(action, server),
            lambda result: self._evaluated(action, result),
        )

    def _evaluate(self, action: events.TakeConfiguration, server: ForkServer | None) -> Evaluated:
        if self._command is not None and server is not None:
            launch.refuse_moved(self._command, server)
        return self._gunicorn.zd_configuration.evaluate(action.configuration)

    def _evaluated(self, action: events.TakeConfiguration, result: Evaluated | BaseException) -> None:
        configuration = self._gunicorn.zd_configuration
        self._evaluations.pop(action.generation, None)
        if not configuration.is_offered(action.configuration):
            return  # it took so long that the generation was given up, and nothing has changed
        if isinstance(result, BaseException) and _wants_main_thread(result):
            self._log.warning(
                "The configuration can be evaluated in the main thread only (it sets signal handlers, or asks for an "
                "event loop): the master waits for it"
            )
            try:
                result = configuration.evaluate(action.configuration)
            except BaseException as error:  # noqa: BLE001  # whatever a configuration raises
                result = error
        if isinstance(result, BaseException):
            self._refuse_configuration(action.generation, result)
        else:
            self._take_evaluated(action, result)

    def _take_evaluated(self, action: events.TakeConfiguration, evaluated: Evaluated | None) -> None:
        number, configuration = action.generation, self._gunicorn.zd_configuration
        try:
            policy = configuration.take(action.configuration, evaluated)
        except BaseException as error:  # noqa: BLE001  # a log file that cannot be opened, a bug: the old one stays
            self._refuse_configuration(number, error)
            return
        try:
            self._announce_configuration(number)
        except BaseException:  # noqa: BLE001  # a log file that cannot be opened; it is in force all the same
            self._log.exception("Not all has learned of the new configuration")
        # Last, because the core orders workers at once; and in any case, because it waits for this event.
        self._publish(events.ConfigurationTaken(number, policy))

    def _announce_configuration(self, number: int) -> None:
        """Let everything know of the configuration that is now in force, before it is used for a worker."""
        if number in self._local:
            self._local[number] = self._local_generation(number)
        self._observers.notify(Observer.configuration_changed, self._gunicorn.zd_configuration.current.settings)
        settings = self._gunicorn.zd_configuration.current.settings
        if settings.max_error_rate is not None or settings.count_answers:
            self._have_answers_counted()
        self._log.reopen_files()
        self._gunicorn.zd_hook("on_reload")
        self._observers.notify(Observer.configuration_taken)

    def _refuse_configuration(self, number: int, error: BaseException) -> None:
        reason = str(error)
        if not isinstance(error, (GenerationError, SettingError)):
            self._log.error("The new configuration cannot be taken over", exc_info=error)
            reason = f"the configuration cannot be taken over: {texts.reason(error)}"
        self._publish(events.ConfigurationRefused(number, reason))

    def _restore_configuration(self, number: int) -> None:
        configuration = self._gunicorn.zd_configuration
        configuration.restore(number)
        self._observers.notify(Observer.configuration_changed, configuration.current.settings)

    # -- workers -------------------------------------------------------------------------------------------------

    def _spawn(self, action: events.Spawn) -> None:
        try:
            record = self._worker_record(action)
        except (OSError, RuntimeError) as error:
            self._publish(events.WorkerGone(action.worker_id, f"got no heartbeat file: {error}"))
            return
        try:
            channel, theirs = Channel.pair(WORKER_REPORT_BYTES)
        except OSError as error:  # no descriptors are left, for which the fork server is not to blame
            record.close()
            self._publish(events.WorkerGone(action.worker_id, f"got no channel: {error}"))
            return
        self._children.add_worker(record, channel, self._receiver.receive_from_worker)
        self._gunicorn.zd_hook("pre_fork", record)
        try:
            self._order(record, theirs)
        except OSError as error:
            if isinstance(error, ConnectionError) and record.generation in self._children.servers:
                # It is dead, or has closed its channel: in any case it is of no use any more.
                self._children.servers[record.generation].kill()
            self._receiver.boot_failed(record, f"could not be asked for: {error}")

    def _worker_record(self, action: events.Spawn) -> WorkerRecord:
        """Return the record of a worker that is about to be ordered.

        :raises OSError: there can be no heartbeat file, or no socket for a new slot.
        :raises RuntimeError: ``worker_tmp_dir`` does not exist.
        """
        configuration = self._gunicorn.zd_configuration
        cfg = configuration.current.cfg
        sockets = self._gunicorn.zd_listeners.of_slot(action.slot, configuration.current.listeners)
        local = self._local.get(action.generation)
        timeout = configuration.timeout_of(action.generation) if local is None else local.cfg.timeout
        arguments = (action.worker_id, os.getpid(), sockets, configuration.app, timeout / 2.0, cfg, self._log)
        return WorkerRecord(*arguments, slot=action.slot, generation=action.generation)

    def _order(self, record: WorkerRecord, theirs: socket.socket) -> None:
        hook_environment = self._gunicorn.zd_configuration.hook_environment
        with contextlib.closing(theirs):
            hook_data = HookData(
                environment=hook_environment.changes(),
                server_attributes=self._plain("server", hook_environment.server_attributes()),
            )
            listeners = [listener.fileno() for listener in record.sockets]
            queue, probes = self._queue_of(record), self._probes_of(record)
            names = [*["listener"] * len(listeners), "heartbeat", "report"]
            names += ["queue"] * len(queue) + ["probe"] * len(probes)
            message = Spawn(
                worker_id=record.worker_id,
                slot=record.slot,
                generation=record.generation,
                descriptors=names,
                worker_attributes=self._plain("worker", record.hook_attributes()),
                workers=self._fleet.wanted_size,
                siblings=self._siblings(record),
            )
            own = [record.tmp.fileno(), theirs.fileno()]
            self._send_order(record, hook_data, message, [*listeners, *own, *queue, *probes])

    def _queue_of(self, record: WorkerRecord) -> list[int]:
        """Return the ends of the queue through which the worker takes and gives connections; none without one."""
        if not self._gunicorn.zd_configuration.current.settings.hand_over:
            return []
        queue = self._queues.of_slot(record.slot)
        return queue.descriptors() if queue is not None else []

    def _probes_of(self, record: WorkerRecord) -> list[int]:
        """Return the ends of a queue of its own for a canary that will be held; none for any other worker."""
        fleet = self._fleet
        if not fleet.held or fleet.newest_verified or record.generation not in fleet.current:
            return []
        with contextlib.suppress(OSError):  # there are no descriptors left: it cannot be probed, and serves
            record.probes = HandOverQueue.open()
        return record.probes.descriptors() if record.probes is not None else []

    def _siblings(self, record: WorkerRecord) -> dict[str, dict[str, Any]]:
        """Return what the hooks in a worker see of the others."""
        found: dict[str, dict[str, Any]] = {}
        for pid, other in self._children.seen_by_hooks(self._fleet, record).items():
            hooked = other.hook_attributes()
            plain = {n: v for n, v in hooked.items() if gunicorn_config.is_plain(v, SIBLING_BYTES)} if hooked else {}
            found[str(pid)] = {**plain, "age": other.worker_id, "slot": other.slot, "alive": other.alive}
        return found

    def _send_order(self, record: WorkerRecord, hook_data: HookData, spawn: Spawn, descriptors: list[int]) -> None:
        if record.generation in self._local:
            loaded_code = self._gunicorn.zd_configuration.loaded_code
            if loaded_code is not None:
                loaded_code.note()
            every = [*self._gunicorn.zd_listeners.every(), *self._queues.every()]
            # Not with the modules and variables, and the locks, of a configuration that is being evaluated.
            with self._gunicorn.zd_configuration.modules.undisturbed():
                pid = self._local[record.generation].fork(hook_data, spawn, descriptors, every)
            self._children.set_pid(record, pid)
            record.forked = True
        elif record.generation in self._children.servers:
            self._children.order(self._children.servers[record.generation], hook_data, spawn, descriptors)
        else:
            raise BrokenPipeError("its fork server has just ended")

    def _plain(self, owner: str, attributes: dict[str, Any]) -> dict[str, Any]:
        """Return the attributes that can be sent, and warn of the others, once for each name."""
        plain = {n: value for n, value in attributes.items() if gunicorn_config.is_plain(value, HOOK_DATA_BYTES)}
        for name in attributes.keys() - plain.keys() - self._warned:
            self._warned.add(name)
            self._log.warning(
                "%s.%s is not plain data of less than %d bytes: hooks in the workers will not see it",
                owner,
                name,
                HOOK_DATA_BYTES,
            )
        return plain

    def _drain(self, action: events.Drain) -> None:
        record = self._children.workers.get(action.worker_id)
        if record is None:
            return
        if not action.hand_over:
            self._queues.close(record.slot)  # before it may give anything
        if action.quick:
            self._tell_to_leave(record, signal.SIGQUIT)
        elif self._owns_a_socket_that_goes(record) and not self._fleet.ending:
            self._drain_with_socket(record, time.monotonic())
        else:
            self._tell_to_leave(record, signal.SIGTERM)

    def _owns_a_socket_that_goes(self, record: WorkerRecord) -> bool:
        return record.slot >= self._fleet.size and record.slot in self._gunicorn.zd_listeners.slots()

    def _drain_with_socket(self, record: WorkerRecord, since: float) -> None:
        """Tell a worker to leave as soon as no connection waits in a socket that goes away with its slot."""
        if record.worker_id not in self._children.workers:
            return
        passed = time.monotonic() - since
        empty = not self._gunicorn.zd_listeners.waiting(record.slot)
        over = passed >= self._gunicorn.zd_configuration.current.cfg.graceful_timeout
        if self._fleet.ending or over or (empty and passed >= HANDSHAKE_S):
            self._tell_to_leave(record, signal.SIGTERM)
        else:
            self._reactor.call_later(HANDSHAKE_S / 5, partial(self._drain_with_socket, record, since))

    def _kill(self, action: events.Kill) -> None:
        record = self._children.workers.get(action.worker_id)
        if record is None:
            return
        if record.has_pid:
            known = action.why in (KillReason.NOT_READY, KillReason.NOT_DRAINED)
            why = action.why if known else KillReason.STILL_THERE
            if action.why is KillReason.NOT_READY and record.forked:
                self._log.critical("Worker (pid:%s) %s: it writes its stack, and is killed", record.pid, why.value)
                self._gunicorn.kill_worker(record.pid, syscalls.STACK_SIGNAL)
                self._reactor.call_later(STACK_S, partial(self._kill_if_there, record))
                return
            self._log.critical("Worker (pid:%s) %s: killed", record.pid, why.value)
        self._tell_to_leave(record, signal.SIGKILL)

    def _kill_if_there(self, record: WorkerRecord) -> None:
        if record.worker_id in self._children.workers:  # else another process may have its pid by now
            self._tell_to_leave(record, signal.SIGKILL)

    def _tell_to_leave(self, record: WorkerRecord, signum: signal.Signals) -> None:
        if not (record.has_pid and record.forked):
            self._receiver.call_off(record, "was not needed any more")
            # Its channel has ended by now. One that is there all the same does not read it: it is stopped.
            if signum != signal.SIGKILL or not record.has_pid:
                return
        if signum == signal.SIGTERM:
            # One that boots may read it together with ``Start``; for that one any TERM is an order.
            record.announce(Leave)
        self._gunicorn.kill_worker(record.pid, signum)

    # -- what users learn ----------------------------------------------------------------------------------------

    def _reload_started(self, action: events.ReloadStarted) -> None:
        generation = action.generation
        kind = Kind.ROLLBACK if action.rollback else Kind.RELOAD
        reload = self._reloads[generation] = Reload.begin(generation, kind)
        self._observers.notify(Observer.reload_started, reload)
        if action.rollback:
            self._log.info("Rollback: to generation %s", generation)
        else:
            self._log.info("Reload: loading generation %s", generation)
        self._gunicorn.zd_hook("zd_reload_started")

    def _canary_ready(self, action: events.CanaryReady) -> None:
        waits = "until it is resumed or rolled back, at most " if action.held else ""
        self._log.info(
            "Reload: generation %s: the canary serves beside all old workers, %s%g s",
            action.generation,
            waits,
            action.seconds,
        )
        if action.held:
            self._have_answers_counted()
        self._observers.notify(Observer.canary_ready, action.generation, action.held, self._fleet)
        record = self._children.workers.get(action.worker_id)
        if record is not None:
            self._gunicorn.zd_hook("zd_canary_ready", record)

    def _have_answers_counted(self) -> None:
        """Have the workers that serve count, which were not asked to when they booted."""
        for record in self._children.workers.values():
            if record.booted:
                record.announce(CountAnswers)

    def _reload_finished(self, action: events.ReloadFinished) -> None:
        lost = self._gunicorn.zd_configuration.not_listened_on() if action.outcome is Outcome.DONE else ""
        if lost:  # a Unix socket's file was removed in the middle of the rollout, say
            reason = f"all workers are new, but {lost} is not listened on any more; reload again"
            action = replace(action, outcome=Outcome.FAILED, reason=reason)
        reload = self._reloads.pop(action.generation, None) or Reload.begin(action.generation)
        reload.duration = time.monotonic() - reload.began
        reload.result = action.outcome
        reload.error = texts.lines(action.reason, texts.REASON_MAX) or None
        reload.traceback = texts.lines(action.traceback) or None
        for record in self._children.workers.values():
            if record.generation == action.generation:  # the canary of another one may still be held
                record.close_probes()
        server = self._children.servers.get(action.generation)
        if server is not None:
            reload.label = server.label
        older = behind(versions(), server.versions) if server is not None else ""
        if older and action.outcome is Outcome.DONE:
            reload.note = f"the master still runs {older}: zdworker upgrade"
        self._observers.notify(Observer.reload_finished, reload, self._fleet)
        if lost:
            self._log.error("Reload: generation %s: %s", action.generation, action.reason)
        else:
            self._log_outcome(action, reload)
        self._gunicorn.zd_hook("zd_reload_finished", reload.to_plain())

    def _log_outcome(self, action: events.ReloadFinished, reload: Reload) -> None:
        generation, took_s = action.generation, reload.duration_s()
        match action.outcome:
            case Outcome.FAILED:
                # The traceback is in the log already: the worker wrote it, or it came with the fork server's report.
                what = "Rollback" if reload.rollback else "Reload"
                slot = f" (slot {action.slot}, which goes back to it)" if action.slot is not None else ""
                self._log.error(
                    "%s to generation %s failed, the code that was running is still serving: %s%s",
                    what,
                    generation,
                    action.reason,
                    slot,
                )
            case Outcome.DONE:
                label = f" ({reload.label})" if reload.label else ""
                cut = _cut(reload.cost)
                if reload.rollback:
                    self._log.info("Rollback: generation %s%s serves again, %.1f s%s", generation, label, took_s, cut)
                    return
                line, found = "Reload: generation %s%s: all workers are new, %.1f s%s%s", reload.judgement
                self._log.info(line, generation, label, took_s, found and f"; {found}", cut)
                if reload.note:
                    self._log.info("Reload: %s", reload.note)
            case Outcome.ROLLED_BACK:
                self._log.info(
                    "Rollback: the reload to generation %s is undone after %.1f s; generation %s serves",
                    generation,
                    took_s,
                    serving_generation(self._fleet),
                )
            case Outcome.SUPERSEDED:
                self._log.info("Reload: generation %s: superseded by a newer one", action.generation)
            case _:
                assert_never(action.outcome)

    def _degraded(self, action: events.Degraded) -> None:
        slot = f"slot {action.slot}, " if action.slot is not None else ""
        self._log.error("Degraded: %s (%snext try in %.1f s)", action.reason, slot, action.next_try_s)
        reason, traceback = texts.lines(action.reason, texts.REASON_MAX), texts.lines(action.traceback)
        self._observers.notify(Observer.degraded, reason, traceback, self._fleet)


def _cut(cost: Drained) -> str:
    """Return which requests a reload has cut, as the end of its line in the log; "" if it has cut none."""
    number = cost.cut_requests
    return f"; {texts.counted(number, 'request')} cut{texts.named(number, cost.cut_paths)}" if number else ""


def _wants_main_thread(error: BaseException) -> bool:
    """Return whether a configuration failed because it was not evaluated in the main thread.

    ``signal.signal`` raises a ValueError elsewhere, ``asyncio.get_event_loop`` a RuntimeError.
    """
    cause = error.__cause__
    return isinstance(cause, (ValueError, RuntimeError)) and bool(
        re.search("main thread|event loop in thread", str(cause))
    )
