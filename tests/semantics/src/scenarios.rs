//! What there is to play, and what is expected of it.

/// Whether a scenario's connections are warmed up, so that they must be lifted when it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarmUp {
    /// Round trips first, until lifted.
    Warm,
    /// None: the connections are lifted in the middle, or never.
    Cold,
}

/// How the lifted transcripts must compare with the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expectation {
    /// Equal in every way.
    Equal,
    /// Known to differ when lifted, for this reason (docs/sockets.md, "What differs"); played in every way, judged only as the
    /// kernel's own.
    Differs(&'static str),
}

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    /// As in `actor/scenarios.h`.
    pub name: &'static str,
    /// Whether it warms up.
    pub warm_up: WarmUp,
    /// What must come out.
    pub expectation: Expectation,
}

use Expectation::{Differs, Equal};
use WarmUp::{Cold, Warm};

/// Every scenario, in the order of `actor/scenarios.h`.
#[rustfmt::skip]
pub const SCENARIOS: &[Scenario] = &[
    // calls.c
    Scenario { name: "echo_sizes", warm_up: Warm, expectation: Equal },
    Scenario { name: "many_small_round_trips", warm_up: Warm, expectation: Equal },
    Scenario { name: "read_write", warm_up: Warm, expectation: Equal },
    Scenario { name: "vectors", warm_up: Warm, expectation: Equal },
    Scenario { name: "long_vectors", warm_up: Warm, expectation: Equal },
    Scenario { name: "send_recv", warm_up: Warm, expectation: Equal },
    Scenario { name: "sendto_recvfrom", warm_up: Warm, expectation: Equal },
    Scenario { name: "sendmsg_recvmsg", warm_up: Warm, expectation: Equal },
    Scenario { name: "sendmmsg_recvmmsg", warm_up: Warm, expectation: Equal },
    Scenario { name: "bad_arguments", warm_up: Warm, expectation: Differs("a bad pointer is a fault in the library's copy, not EFAULT") },
    Scenario { name: "calls_for_other_files", warm_up: Warm, expectation: Equal },
    Scenario { name: "both_ways_at_once", warm_up: Warm, expectation: Equal },
    Scenario { name: "one_way_from_the_start", warm_up: Cold, expectation: Equal },
    // flags.c
    Scenario { name: "msg_peek", warm_up: Warm, expectation: Equal },
    Scenario { name: "peek_blocks", warm_up: Warm, expectation: Equal },
    Scenario { name: "msg_waitall", warm_up: Warm, expectation: Equal },
    Scenario { name: "waitall_large", warm_up: Warm, expectation: Equal },
    Scenario { name: "msg_dontwait", warm_up: Warm, expectation: Equal },
    Scenario { name: "msg_trunc", warm_up: Warm, expectation: Equal },
    Scenario { name: "msg_more", warm_up: Warm, expectation: Equal },
    Scenario { name: "unknown_flags", warm_up: Warm, expectation: Equal },
    Scenario { name: "msg_zerocopy", warm_up: Warm, expectation: Equal },
    // modes.c
    Scenario { name: "fionread", warm_up: Warm, expectation: Equal },
    Scenario { name: "outq_drains", warm_up: Warm, expectation: Equal },
    Scenario { name: "outq_while_full", warm_up: Warm, expectation: Equal },
    Scenario { name: "nonblocking_ways", warm_up: Warm, expectation: Equal },
    Scenario { name: "nonblocking_is_shared", warm_up: Warm, expectation: Equal },
    Scenario { name: "accept4_flags", warm_up: Warm, expectation: Equal },
    Scenario { name: "full_then_drained", warm_up: Warm, expectation: Equal },
    Scenario { name: "blocked_writer", warm_up: Warm, expectation: Equal },
    // readiness.c
    Scenario { name: "poll_bits", warm_up: Warm, expectation: Equal },
    Scenario { name: "poll_timeouts", warm_up: Warm, expectation: Equal },
    Scenario { name: "poll_mixed", warm_up: Warm, expectation: Equal },
    Scenario { name: "select_mixed", warm_up: Warm, expectation: Equal },
    Scenario { name: "poll_duplicates", warm_up: Warm, expectation: Equal },
    Scenario { name: "wait_with_signal_mask", warm_up: Warm, expectation: Equal },
    Scenario { name: "poll_writable", warm_up: Warm, expectation: Equal },
    // epoll.c
    Scenario { name: "epoll_level", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_edge", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_edge_writable", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_edge_room_after_news", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_edge_read_before", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_oneshot", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_hangup", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_ctl_errors", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_delete_and_add_again", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_changes_between_waits", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_changes_between_waits_cold", warm_up: Cold, expectation: Equal },
    Scenario { name: "epoll_before_connect", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_mixed_kinds", warm_up: Warm, expectation: Equal },
    // epoll_sets.c
    Scenario { name: "epoll_two_sets", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_dup", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_number_reused", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_nested", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_small_room", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_two_threads", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_add_while_waiting", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_shared_by_fork", warm_up: Warm, expectation: Equal },
    Scenario { name: "epoll_entry_outlives_close", warm_up: Warm, expectation: Differs("a registration ends with the last descriptor of this process, not of the family") },
    // closing.c
    Scenario { name: "half_close", warm_up: Warm, expectation: Equal },
    Scenario { name: "shutdown_read", warm_up: Warm, expectation: Equal },
    Scenario { name: "shutdown_both", warm_up: Warm, expectation: Equal },
    Scenario { name: "shutdown_unconnected", warm_up: Cold, expectation: Equal },
    Scenario { name: "simultaneous_close", warm_up: Warm, expectation: Equal },
    Scenario { name: "close_with_unread_bytes", warm_up: Warm, expectation: Equal },
    Scenario { name: "write_after_peer_closed", warm_up: Warm, expectation: Equal },
    Scenario { name: "killed_by_broken_pipe", warm_up: Warm, expectation: Equal },
    Scenario { name: "so_error_after_reset", warm_up: Warm, expectation: Equal },
    Scenario { name: "linger_zero", warm_up: Warm, expectation: Equal },
    Scenario { name: "close_is_known_at_once", warm_up: Warm, expectation: Equal },
    Scenario { name: "linger_waits", warm_up: Warm, expectation: Equal },
    Scenario { name: "close_right_after_writing", warm_up: Warm, expectation: Equal },
    Scenario { name: "exit_right_after_writing", warm_up: Warm, expectation: Equal },
    Scenario { name: "close_then_lower_unread", warm_up: Warm, expectation: Equal },
    Scenario { name: "close_then_write_before_reading", warm_up: Warm, expectation: Equal },
    // death.c
    Scenario { name: "peer_killed", warm_up: Warm, expectation: Equal },
    Scenario { name: "peer_killed_with_unread_bytes", warm_up: Warm, expectation: Differs("a killed peer that left bytes unread in a ring shows an end, not a reset") },
    Scenario { name: "peer_killed_while_reading", warm_up: Warm, expectation: Equal },
    Scenario { name: "peer_killed_while_writing", warm_up: Warm, expectation: Differs("as peer_killed_with_unread_bytes") },
    Scenario { name: "peer_killed_while_polling", warm_up: Warm, expectation: Equal },
    Scenario { name: "peer_killed_in_mid_stream", warm_up: Warm, expectation: Equal },
    Scenario { name: "peer_stopped", warm_up: Warm, expectation: Equal },
    // options.c
    Scenario { name: "receive_timeout", warm_up: Warm, expectation: Equal },
    Scenario { name: "send_timeout", warm_up: Warm, expectation: Equal },
    Scenario { name: "receive_low_water", warm_up: Warm, expectation: Equal },
    Scenario { name: "addresses", warm_up: Warm, expectation: Equal },
    Scenario { name: "socket_options", warm_up: Warm, expectation: Equal },
    Scenario { name: "tcp_info_counts", warm_up: Warm, expectation: Equal },
    Scenario { name: "upper_layer_protocol", warm_up: Warm, expectation: Equal },
    // connecting.c
    Scenario { name: "nonblocking_connect", warm_up: Warm, expectation: Equal },
    Scenario { name: "connect_refused", warm_up: Cold, expectation: Equal },
    Scenario { name: "gone_before_accept", warm_up: Cold, expectation: Equal },
    Scenario { name: "written_before_accept", warm_up: Warm, expectation: Equal },
    Scenario { name: "connected_to_itself", warm_up: Warm, expectation: Equal },
    Scenario { name: "self_connect", warm_up: Cold, expectation: Equal },
    Scenario { name: "ipv6", warm_up: Warm, expectation: Equal },
    Scenario { name: "many_short_connections", warm_up: Cold, expectation: Equal },
    // descriptors.c
    Scenario { name: "dup_family", warm_up: Warm, expectation: Equal },
    Scenario { name: "dup2_over_connection", warm_up: Warm, expectation: Equal },
    Scenario { name: "dup2_onto_connection", warm_up: Warm, expectation: Equal },
    Scenario { name: "lowest_number", warm_up: Warm, expectation: Equal },
    Scenario { name: "close_all_others", warm_up: Warm, expectation: Equal },
    Scenario { name: "close_everything_and_reconnect", warm_up: Warm, expectation: Equal },
    Scenario { name: "descriptor_limit", warm_up: Warm, expectation: Equal },
    Scenario { name: "descriptor_limit_lowered", warm_up: Warm, expectation: Equal },
    Scenario { name: "close_one_dup", warm_up: Warm, expectation: Equal },
    // processes.c
    Scenario { name: "fork_in_turns", warm_up: Warm, expectation: Equal },
    Scenario { name: "fork_child_leaves", warm_up: Warm, expectation: Equal },
    Scenario { name: "fork_half_read", warm_up: Warm, expectation: Equal },
    Scenario { name: "fork_parent_leaves", warm_up: Warm, expectation: Equal },
    Scenario { name: "fork_by_other_means", warm_up: Warm, expectation: Equal },
    Scenario { name: "sandboxed_while_young", warm_up: Cold, expectation: Equal },
    Scenario { name: "fork_per_connection", warm_up: Warm, expectation: Equal },
    Scenario { name: "fork_one_reads_one_writes", warm_up: Warm, expectation: Equal },
    Scenario { name: "fork_child_killed", warm_up: Warm, expectation: Equal },
    Scenario { name: "other_programs", warm_up: Warm, expectation: Equal },
    Scenario { name: "fork_then_warm", warm_up: Cold, expectation: Equal },
    Scenario { name: "fork_both_wait", warm_up: Warm, expectation: Equal },
    Scenario { name: "relative_lets_go_of_reader", warm_up: Warm, expectation: Equal },
    Scenario { name: "relative_lets_go_of_poller", warm_up: Warm, expectation: Equal },
    Scenario { name: "relative_lets_go_of_epoll", warm_up: Warm, expectation: Equal },
    // exec.c
    Scenario { name: "exec_shell", warm_up: Warm, expectation: Equal },
    Scenario { name: "exec_cat", warm_up: Warm, expectation: Equal },
    Scenario { name: "exec_static", warm_up: Warm, expectation: Equal },
    Scenario { name: "exec_in_place", warm_up: Warm, expectation: Equal },
    Scenario { name: "exec_half_read", warm_up: Warm, expectation: Equal },
    Scenario { name: "exec_self", warm_up: Warm, expectation: Equal },
    Scenario { name: "exec_without_environment", warm_up: Warm, expectation: Equal },
    Scenario { name: "exec_fails", warm_up: Warm, expectation: Equal },
    Scenario { name: "exec_closes", warm_up: Warm, expectation: Equal },
    Scenario { name: "spawn_on_connection", warm_up: Warm, expectation: Equal },
    Scenario { name: "system_on_connection", warm_up: Warm, expectation: Equal },
    Scenario { name: "exec_while_peer_is_stopped", warm_up: Warm, expectation: Equal },
    Scenario { name: "exec_inherits_epoll_set", warm_up: Warm, expectation: Equal },
    // passing.c
    Scenario { name: "pass_to_same_program", warm_up: Warm, expectation: Equal },
    Scenario { name: "pass_to_disabled", warm_up: Warm, expectation: Equal },
    Scenario { name: "pass_without_environment", warm_up: Warm, expectation: Equal },
    Scenario { name: "pass_to_static", warm_up: Warm, expectation: Equal },
    Scenario { name: "pass_to_forked", warm_up: Warm, expectation: Equal },
    Scenario { name: "pass_and_close", warm_up: Warm, expectation: Equal },
    Scenario { name: "pass_while_peer_is_stopped", warm_up: Warm, expectation: Equal },
    Scenario { name: "pass_to_itself", warm_up: Warm, expectation: Equal },
    // urgent.c
    Scenario { name: "urgent_byte", warm_up: Warm, expectation: Equal },
    Scenario { name: "urgent_inline", warm_up: Warm, expectation: Equal },
    Scenario { name: "urgent_signal", warm_up: Warm, expectation: Equal },
    // files.c
    Scenario { name: "sendfile", warm_up: Warm, expectation: Equal },
    Scenario { name: "sendfile_nonblocking", warm_up: Warm, expectation: Equal },
    Scenario { name: "splice_from_connection", warm_up: Warm, expectation: Equal },
    Scenario { name: "splice_to_connection", warm_up: Warm, expectation: Equal },
    // stdio.c
    Scenario { name: "stdio_stream", warm_up: Warm, expectation: Equal },
    Scenario { name: "stdio_unread_bytes", warm_up: Warm, expectation: Equal },
    Scenario { name: "stdio_bulk", warm_up: Warm, expectation: Equal },
    Scenario { name: "stdio_broken_pipe", warm_up: Warm, expectation: Equal },
    Scenario { name: "stdio_as_standard_output", warm_up: Warm, expectation: Equal },
    // other_doors.c
    Scenario { name: "syscall_function", warm_up: Warm, expectation: Differs("after lowering, the end of the stream comes to TCP a moment later") },
    Scenario { name: "dlsym_default", warm_up: Warm, expectation: Equal },
    Scenario { name: "dlsym_next", warm_up: Warm, expectation: Equal },
    Scenario { name: "dlsym_libc_handle", warm_up: Warm, expectation: Differs("addresses taken from the C library's own handle go past the hooks") },
    Scenario { name: "dlvsym", warm_up: Warm, expectation: Differs("addresses taken by version go past the hooks") },
    Scenario { name: "bare_instructions", warm_up: Warm, expectation: Differs("system call instructions in the program itself go past every hook") },
    // uring.c
    Scenario { name: "uring_send_and_receive", warm_up: Warm, expectation: Equal },
    // fortified.c
    Scenario { name: "fortified_calls", warm_up: Warm, expectation: Equal },
    // threads.c
    Scenario { name: "thread_send_while_recv", warm_up: Warm, expectation: Equal },
    Scenario { name: "thread_shutdown_while_recv", warm_up: Warm, expectation: Equal },
    Scenario { name: "thread_close_while_recv", warm_up: Warm, expectation: Differs("a descriptor closed under a sleeping recv ends that call with EBADF") },
    Scenario { name: "thread_number_reused_while_recv", warm_up: Warm, expectation: Differs("as thread_close_while_recv") },
    Scenario { name: "thread_shutdown_while_send", warm_up: Warm, expectation: Equal },
    Scenario { name: "thread_cancelled_in_recv", warm_up: Warm, expectation: Equal },
    Scenario { name: "thread_many_writers", warm_up: Warm, expectation: Equal },
    Scenario { name: "thread_many_readers", warm_up: Warm, expectation: Equal },
    Scenario { name: "thread_both_ways_from_the_start", warm_up: Cold, expectation: Equal },
    Scenario { name: "thread_fork_while_recv", warm_up: Warm, expectation: Equal },
    // signals.c
    Scenario { name: "signal_interrupts", warm_up: Warm, expectation: Equal },
    Scenario { name: "signal_restarts", warm_up: Warm, expectation: Equal },
    Scenario { name: "signal_with_timeout", warm_up: Warm, expectation: Equal },
    Scenario { name: "signal_in_waitall", warm_up: Warm, expectation: Equal },
    Scenario { name: "signal_in_send", warm_up: Warm, expectation: Equal },
    Scenario { name: "longjmp_out_of_recv", warm_up: Warm, expectation: Equal },
    Scenario { name: "longjmp_out_of_send", warm_up: Warm, expectation: Equal },
    Scenario { name: "send_in_handler", warm_up: Warm, expectation: Equal },
    Scenario { name: "signal_storm", warm_up: Warm, expectation: Equal },
    Scenario { name: "signal_driven_input", warm_up: Warm, expectation: Equal },
    // crowd.c
    Scenario { name: "crowd", warm_up: Cold, expectation: Equal },
    Scenario { name: "idle", warm_up: Warm, expectation: Equal },
    Scenario { name: "warm_and_wait", warm_up: Warm, expectation: Equal },
    // boundaries.c
    Scenario { name: "all_in_one_read", warm_up: Warm, expectation: Equal },
    Scenario { name: "peek_for_all", warm_up: Warm, expectation: Equal },
    Scenario { name: "recvmmsg_ends", warm_up: Warm, expectation: Equal },
    Scenario { name: "send_to_shut_down", warm_up: Warm, expectation: Equal },
    Scenario { name: "send_after_shutdown_read", warm_up: Warm, expectation: Equal },
    Scenario { name: "shutdown_again", warm_up: Warm, expectation: Equal },
    Scenario { name: "error_before_broken_pipe", warm_up: Warm, expectation: Equal },
    Scenario { name: "reset_after_end", warm_up: Warm, expectation: Equal },
    Scenario { name: "waitall_before_reset", warm_up: Warm, expectation: Equal },
    Scenario { name: "sendfile_after_end", warm_up: Warm, expectation: Equal },
    Scenario { name: "peer_ran_another", warm_up: Warm, expectation: Equal },
    Scenario { name: "peer_ran_another_then_fork", warm_up: Warm, expectation: Equal },
    Scenario { name: "peer_ran_another_then_end", warm_up: Warm, expectation: Equal },
    Scenario { name: "peer_ran_another_then_file", warm_up: Warm, expectation: Equal },
    Scenario { name: "read_across_programs", warm_up: Warm, expectation: Equal },
    Scenario { name: "both_ran_another", warm_up: Warm, expectation: Equal },
    Scenario { name: "both_ran_another_half_read", warm_up: Warm, expectation: Equal },
    Scenario { name: "both_ran_another_read_on", warm_up: Warm, expectation: Equal },
    Scenario { name: "both_ran_another_large", warm_up: Warm, expectation: Equal },
    Scenario { name: "both_ran_another_at_once", warm_up: Warm, expectation: Equal },
    Scenario { name: "read_behind_another_program", warm_up: Warm, expectation: Equal },
    Scenario { name: "read_all_behind_another_program", warm_up: Warm, expectation: Equal },
    Scenario { name: "other_program_after_shutdown", warm_up: Warm, expectation: Equal },
    // switching.c
    Scenario { name: "readable_while_lifted", warm_up: Cold, expectation: Equal },
    Scenario { name: "closed_while_lifted", warm_up: Cold, expectation: Equal },
    Scenario { name: "vfork_while_lifted", warm_up: Cold, expectation: Equal },
    // loans.c
    Scenario { name: "loan_round_trips", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_bulk", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_of_grown_rings", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_rules", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_arguments", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_waits", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_waits_for_room", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_ends", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_of_the_killed", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_lowered_by_receiver", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_lowered_by_sender", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_and_another_program", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_and_fork", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_and_close", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_threads", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_edges", warm_up: Warm, expectation: Equal },
    Scenario { name: "loan_while_lifted", warm_up: Cold, expectation: Equal },
];
