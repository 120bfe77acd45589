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
    /// `scenario_NAME` plays it.
    pub name: &'static str,
    /// Whether it warms up.
    pub warm_up: WarmUp,
    /// What must come out.
    pub expectation: Expectation,
}

/// Gives every scenario to the macro `$tell`: its name, whether it warms up, and, if it differs when lifted, why. By the file in
/// `actor/` that has it.
#[macro_export]
macro_rules! for_every_scenario {
    ($tell:ident) => {
        $tell! {
            // calls.c
            echo_sizes: Warm;
            many_small_round_trips: Warm;
            read_write: Warm;
            vectors: Warm;
            long_vectors: Warm;
            vectors_at_position: Warm;
            send_recv: Warm;
            sendto_recvfrom: Warm;
            sendmsg_recvmsg: Warm;
            control_data: Warm;
            bytes_left: Warm;
            recvmmsg_time: Warm;
            sendmmsg_recvmmsg: Warm;
            sendmmsg_in_parts: Warm;
            message_without_name: Warm;
            bad_arguments_elsewhere: Cold;
            bad_arguments: Warm, "a bad pointer is a fault in the library's copy, not EFAULT";
            calls_for_other_files: Warm;
            both_ways_at_once: Warm;
            one_way_from_the_start: Cold;
            // flags.c
            msg_peek: Warm;
            peek_blocks: Warm;
            msg_waitall: Warm;
            waitall_large: Warm;
            msg_dontwait: Warm;
            msg_trunc: Warm;
            msg_more: Warm;
            unknown_flags: Warm;
            msg_zerocopy: Warm;
            // modes.c
            fionread: Warm;
            outq_drains: Warm;
            outq_while_full: Warm;
            outq_of_unread: Warm;
            notsent_low_water: Warm;
            pacing: Cold;
            nonblocking_ways: Warm;
            nonblocking_is_shared: Warm;
            accept4_flags: Warm;
            full_then_drained: Warm;
            blocked_writer: Warm;
            // readiness.c
            poll_bits: Warm;
            poll_timeouts: Warm;
            poll_without_an_end: Warm;
            poll_mixed: Warm;
            poll_at_the_limits: Warm;
            select_beyond_its_sets: Warm;
            poll_asked_often: Warm;
            few_descriptors_allowed: Warm;
            no_descriptors_allowed: Warm;
            no_address_space_left: Warm;
            connections_without_memory: Warm;
            small_files_only: Cold;
            poll_bytes_and_others: Warm;
            select_mixed: Warm;
            poll_duplicates: Warm;
            wait_with_signal_mask: Warm;
            poll_writable: Warm;
            // epoll.c
            epoll_closed_without_delete: Cold;
            epoll_level: Warm;
            epoll_edge: Warm;
            epoll_edge_writable: Warm;
            epoll_edge_room_after_news: Warm;
            epoll_edge_read_before: Warm;
            epoll_edge_of_others: Warm;
            epoll_edge_of_end: Warm;
            epoll_edge_of_end_when_deaf: Warm;
            epoll_edge_while_lifted: Cold;
            epoll_edge_while_both_send: Cold;
            epoll_looks_at_all: Warm;
            epoll_oneshot: Warm;
            epoll_hangup: Warm;
            epoll_ctl_errors: Warm;
            epoll_delete_and_add_again: Warm;
            epoll_changes_between_waits: Warm;
            epoll_changes_between_waits_cold: Cold;
            epoll_before_connect: Warm;
            epoll_mixed_kinds: Warm;
            // epoll_sets.c
            epoll_two_sets: Warm;
            epoll_dup: Warm;
            epoll_set_renumbered: Warm;
            epoll_lowered_by_child: Warm;
            epoll_deleted_after_child_lowered: Warm;
            epoll_exclusive: Warm;
            epoll_number_reused: Warm;
            epoll_nested: Warm;
            epoll_small_room: Warm;
            epoll_each_once: Warm;
            epoll_two_threads: Warm;
            epoll_add_while_waiting: Warm;
            epoll_armed_while_waiting: Warm;
            epoll_shared_by_fork: Warm;
            epoll_lowered_beside_others: Warm;
            epoll_tells_of_all_kinds: Warm;
            epoll_registered_number_closed: Cold;
            epoll_exclusive_later: Warm;
            epoll_entry_outlives_close: Warm, "a registration ends with the last descriptor of this process, not of the family";
            // closing.c
            half_close: Warm;
            half_close_of_the_new: Cold;
            first_answer_after_close: Cold;
            writes_after_peer_closed: Warm;
            peer_name_after_both_ends: Warm;
            reset_while_waiting_for_all: Warm;
            shutdown_read: Warm;
            shutdown_both: Warm;
            shutdown_both_then_lower_unread: Warm;
            shutdown_unconnected: Cold;
            simultaneous_close: Warm;
            close_with_unread_bytes: Warm;
            write_after_peer_closed: Warm;
            killed_by_broken_pipe: Warm;
            so_error_after_reset: Warm;
            linger_zero: Warm;
            close_is_known_at_once: Warm;
            linger_waits: Warm;
            close_right_after_writing: Warm;
            exit_right_after_writing: Warm;
            send_by_a_destructor: Warm;
            exit_while_a_thread_sends: Warm;
            bare_exit_while_a_thread_sends: Warm;
            quick_exit_while_a_thread_sends: Warm;
            read_after_reset_and_exec: Warm;
            quick_exit_with_unread_bytes: Warm;
            system_call_exit_with_unread_bytes: Warm;
            last_thread_ends_with_unread_bytes: Warm;
            send_after_reset_of_the_lowered: Warm;
            error_after_short_send: Warm;
            room_after_reset_of_the_lowered: Warm;
            bare_exit_of_a_relative: Warm;
            bare_exit_with_unread_bytes: Warm;
            bare_exit_then_lower_unread: Warm;
            close_then_lower_unread: Warm;
            close_then_write_before_reading: Warm;
            // death.c
            peer_killed: Warm;
            peer_killed_with_unread_bytes: Warm;
            peer_killed_after_its_end_with_unread_bytes: Warm;
            peer_killed_that_had_a_child: Warm;
            peer_killed_seen_without_waiting: Warm;
            reset_seen_without_waiting: Warm;
            reset_by_unread_bytes_seen_without_waiting: Warm;
            peer_killed_while_reading: Warm;
            peer_killed_while_writing: Warm;
            peer_killed_while_waiting_for_room: Warm;
            peer_killed_after_its_end: Warm;
            peer_killed_after_its_end_while_writing: Warm;
            peer_killed_after_its_end_while_waiting_for_room: Warm;
            peer_killed_while_a_deaf_one_writes: Warm;
            peer_killed_while_polling: Warm;
            peer_killed_in_mid_stream: Warm;
            peer_stopped: Warm;
            // options.c
            receive_timeout: Warm;
            time_limit_below_zero: Warm;
            send_timeout: Warm;
            receive_low_water: Warm;
            low_water_of_listener: Cold;
            timestamps_of_listener: Cold;
            timestamps_of_new_kinds: Warm;
            receive_by_option: Warm;
            addresses: Warm;
            socket_options: Warm;
            send_buffer_size: Warm;
            tcp_info_counts: Warm;
            upper_layer_protocol: Warm;
            // connecting.c
            nonblocking_connect: Warm;
            connect_refused: Cold;
            gone_before_accept: Cold;
            written_before_accept: Warm;
            connected_to_itself: Warm;
            self_connect: Cold;
            disconnected: Warm;
            ipv6: Warm;
            many_short_connections: Cold;
            // descriptors.c
            dup_family: Warm;
            dup2_over_connection: Warm;
            numbers_out_of_reach: Warm;
            dup2_onto_connection: Warm;
            lowest_number: Warm;
            close_all_others: Warm;
            close_everything_and_reconnect: Warm;
            close_unshared: Warm;
            descriptor_limit: Warm;
            descriptor_limit_lowered: Warm;
            close_one_dup: Warm;
            // processes.c
            fork_in_turns: Warm;
            fork_child_leaves: Warm;
            fork_half_read: Warm;
            fork_parent_leaves: Warm;
            fork_by_other_means: Warm;
            sandboxed_while_young: Cold;
            sandboxed_while_lifted: Warm;
            fork_per_connection: Warm;
            daemon_closes: Warm;
            sandboxed_calls: Warm;
            sandboxed_while_offered: Cold;
            fork_one_reads_one_writes: Warm;
            fork_parent_leaves_at_the_limit: Warm;
            fork_child_killed: Warm;
            fork_child_killed_not_reaped: Warm;
            fork_beside_the_first_connection: Cold;
            other_programs: Warm;
            fork_then_warm: Cold;
            fork_both_wait: Warm;
            relative_lets_go_of_reader: Warm;
            relative_lets_go_of_poller: Warm;
            relative_lets_go_of_epoll: Warm;
            // exec.c
            exec_shell: Warm;
            exec_cat: Warm;
            exec_static: Warm;
            exec_in_place: Warm;
            exec_half_read: Warm;
            exec_self: Warm;
            exec_without_environment: Warm;
            exec_fails: Warm;
            exec_closes: Warm;
            exec_by_system_call: Warm;
            spawn_by_actions_of_before: Warm;
            word_of_a_command: Warm;
            spawn_on_connection: Warm;
            system_on_connection: Warm;
            exec_while_peer_is_stopped: Warm;
            exec_inherits_epoll_set: Warm;
            // passing.c
            pass_to_same_program: Warm;
            pass_to_disabled: Warm;
            pass_without_environment: Warm;
            pass_to_static: Warm;
            pass_by_system_call: Warm;
            pass_to_forked: Warm;
            pass_and_close: Warm;
            pass_while_peer_is_stopped: Warm;
            pass_to_itself: Warm;
            closed_after_passing: Warm;
            reset_after_passing: Warm;
            // handing.c
            lifted_after_exec: Warm;
            lifted_in_child_program: Warm;
            lifted_off_standard_input: Warm;
            lifted_after_passing: Warm;
            set_by_another_program: Warm;
            lifted_after_peeking: Warm;
            shared_by_programs: Cold;
            shared_by_programs_then_alone: Warm;
            connected_by_next_program: Cold;
            exec_inherits_epoll_set_and_library: Cold;
            lowered_in_child_then_exec: Warm;
            lowered_in_child_then_exec_without: Warm;
            exec_leaves_unread_bytes: Warm;
            // corking.c
            held_back: Warm;
            corked: Warm;
            corked_then_nodelay: Warm;
            corked_then_nodelay_off: Warm;
            corked_from_the_beginning: Cold;
            held_back_and_waited_for: Warm;
            held_back_and_looked_for: Warm;
            held_back_from_two_threads: Warm;
            held_back_then_shutdown: Warm;
            held_back_then_closed: Warm;
            held_back_then_exit: Warm;
            held_back_then_killed: Warm;
            held_back_then_sender_lowers: Warm;
            held_back_then_reader_lowers: Warm;
            held_back_by_the_megabyte: Warm;
            held_back_until_full: Warm;
            // urgent.c
            urgent_byte: Warm;
            urgent_inline: Warm;
            urgent_signal: Warm;
            urgent_while_lifting: Cold;
            // files.c
            sendfile: Warm;
            sendfile_nonblocking: Warm;
            sendfile_from_small_stack: Warm;
            sendfile_refused: Warm;
            sendfile_in_one_piece: Warm;
            sendfile_beside_splice: Warm;
            sendfile_to_pipe: Warm;
            splice_from_connection: Warm;
            splice_from_full: Warm;
            splice_to_connection: Warm;
            // stdio.c
            stdio_stream: Warm;
            stdio_unread_bytes: Warm;
            stdio_bulk: Warm;
            stdio_broken_pipe: Warm;
            stdio_as_standard_output: Warm;
            stdio_by_other_names: Warm;
            // other_doors.c
            syscall_function_for_many: Warm;
            asynchronous_io: Warm;
            asynchronous_io_by_list: Warm;
            submitted_io: Warm;
            epoll_dup_by_system_call: Warm;
            syscall_function: Warm, "after lowering, the end of the stream comes to TCP a moment later";
            dlsym_default: Warm;
            dlsym_next: Warm;
            dlsym_libc_handle: Warm;
            dlvsym: Warm, "addresses taken by version go past the hooks";
            bare_instructions: Warm, "system call instructions in the program itself go past every hook";
            second_names: Warm;
            call_beside_dlopen: Warm;
            // uring.c
            uring_send_and_receive: Warm;
            uring_epoll_ctl: Warm;
            uring_epoll_ctl_clamped: Warm;
            uring_closed: Warm;
            uring_epoll_ctl_then_bytes: Warm;
            // fortified.c
            fortified_calls: Warm;
            // sleepers.c
            sleepers_slow_recv: Warm;
            sleepers_slow_poll: Warm;
            sleepers_slow_epoll: Warm;
            sleepers_beside_a_look: Warm;
            sleepers_beside_a_set: Cold;
            // lists.c
            pieces_changed_while_receiving: Warm;
            pieces_changed_while_sending: Warm;
            list_changed_while_polling: Warm;
            // threads.c
            thread_send_while_recv: Warm;
            thread_shutdown_while_recv: Warm;
            thread_close_while_recv: Warm;
            thread_close_while_recv_as_another_user: Warm;
            thread_number_reused_while_recv: Warm;
            thread_close_while_both: Warm;
            thread_close_while_two_recv: Warm;
            thread_send_beside_recv_and_poll: Cold;
            thread_close_registered_while_send: Warm;
            thread_number_reused_registered_while_send: Warm;
            thread_close_after_longjmp: Warm;
            thread_close_while_sending: Cold;
            thread_close_while_poll: Warm;
            thread_close_while_select: Warm;
            thread_close_while_two_poll: Warm;
            thread_close_while_recv_since_before: Cold;
            thread_close_with_reset_while_recv_since_before: Cold;
            thread_close_while_poll_since_before: Cold;
            thread_close_while_send_since_before: Cold;
            thread_number_reused_while_poll: Warm;
            thread_number_reused_while_select: Warm;
            thread_recv_beside_dup2: Warm;
            thread_recv_beside_setgid: Warm;
            thread_send_beside_dup2: Warm;
            thread_recv_begins_beside_dup2: Cold;
            thread_connect_beside_closefrom: Cold;
            thread_fork_after_close_while_recv: Warm;
            thread_close_all_while_recv: Warm;
            thread_close_both_numbers_while_recv: Warm;
            thread_recv_beside_poll: Warm;
            thread_recv_beside_select: Warm;
            thread_recv_beside_recv: Warm;
            thread_recv_beside_epoll_for_room: Warm;
            thread_shutdown_while_send: Warm;
            thread_send_buffer_enlarged: Warm;
            thread_cancelled_in_recv: Warm;
            close_against_write: Cold;
            receivers_beside_each_other: Cold;
            senders_beside_each_other: Cold;
            thread_cancelled_in_poll: Warm;
            thread_cancelled_at_entry: Warm;
            thread_cancelled_anywhere: Warm;
            thread_many_writers: Warm;
            thread_many_readers: Warm;
            thread_both_ways_from_the_start: Cold;
            thread_fork_while_recv: Warm;
            thread_fork_beside_epoll_ctl: Warm;
            thread_fork_before_next_look: Cold;
            thread_with_descriptors_of_its_own: Warm;
            thread_closes_unshared: Warm;
            // signals.c
            signal_interrupts: Warm;
            signal_restarts: Warm;
            signal_with_timeout: Warm;
            signals_of_both_kinds: Warm;
            signal_in_handler: Warm;
            signals_at_once: Warm;
            signal_in_waitall: Warm;
            signal_in_send: Warm;
            longjmp_out_of_recv: Warm;
            longjmp_out_of_send: Warm;
            send_in_handler: Warm;
            send_in_handler_of_send: Warm;
            many_signals_in_send: Warm;
            queued_signal_without_room: Warm;
            receive_in_handler_of_receive: Warm;
            receive_in_handler_of_waitall: Warm;
            handlers_are_told: Warm;
            handler_called_once: Warm;
            signal_storm: Warm;
            queued_signals: Warm;
            signal_before_poll_sleeps: Warm;
            signal_before_select_sleeps: Warm;
            signal_before_epoll_wait_sleeps: Warm;
            signal_before_recv_sleeps: Warm;
            connections_in_handler: Cold;
            signal_driven_input: Warm;
            // crowd.c
            crowd: Cold;
            idle: Warm;
            warm_and_wait: Warm;
            // bells.c
            many_waited_for_in_turns: Warm;
            many_in_two_sets: Warm;
            many_threads_later: Warm;
            many_shared_out_by_fork: Warm;
            // boundaries.c
            all_in_one_read: Warm;
            peek_for_all: Warm;
            recvmmsg_ends: Warm;
            send_to_shut_down: Warm;
            send_to_shut_down_and_emptied: Warm;
            send_after_shutdown_read: Warm;
            shutdown_again: Warm;
            error_before_broken_pipe: Warm;
            reset_after_end: Warm;
            waitall_before_reset: Warm;
            sendfile_after_end: Warm;
            peer_ran_another: Warm;
            peer_ran_another_then_fork: Warm;
            peer_ran_another_then_end: Warm;
            peer_ran_another_then_file: Warm;
            read_across_programs: Warm;
            both_lowered_while_full: Warm;
            end_behind_lowered_bytes: Warm;
            both_ran_another: Warm;
            both_ran_another_half_read: Warm;
            both_ran_another_read_on: Warm;
            both_ran_another_large: Warm;
            both_ran_another_at_once: Warm;
            read_behind_another_program: Warm;
            read_all_behind_another_program: Warm;
            other_program_after_shutdown: Warm;
            // pools.c
            pool_added_by_acceptor: Cold;
            pool_of_one_shots: Cold;
            // switching.c
            readable_while_lifted: Cold;
            closed_while_lifted: Cold;
            reset_while_lifted: Cold;
            lowered_while_lifting: Cold;
            peek_while_lifted: Cold;
            vfork_while_lifted: Cold;
            vfork_with_unread_bytes: Warm;
            // vfork.c
            vfork_child_has_other_files: Warm;
            vfork_child_sets_nonblocking: Cold;
            vfork_child_exchanges_connections: Warm;
            vfork_child_uses_connection: Warm;
            vfork_child_has_a_set_of_its_own: Warm;
            vfork_child_beside_a_thread: Warm;
            // loans.c
            loan_round_trips: Warm;
            loan_bulk: Warm;
            loan_of_grown_rings: Warm;
            loan_rules: Warm;
            loan_arguments: Warm;
            loan_waits: Warm;
            loan_waits_for_room: Warm;
            loan_ends: Warm;
            loan_of_the_killed: Warm;
            loan_lowered_by_receiver: Warm;
            loan_lowered_by_sender: Warm;
            loan_and_another_program: Warm;
            loan_and_fork: Warm;
            loan_and_close: Warm;
            loan_threads: Warm;
            loan_edges: Warm;
            loan_while_lifted: Cold;
            // parking.c
            parked_and_used: Warm;
            parked_under_sleep: Warm;
            parked_one_shot: Warm;
            parked_then_forked: Warm;
            parked_then_spawned: Warm;
            parked_then_half_closed: Warm;
            parked_then_closed: Warm;
            parked_peer_killed: Warm;
            parked_race: Warm;
        }
    };
}

macro_rules! table {
    ($($name:ident: $warm_up:ident $(, $why:literal)?;)*) => {
        /// Every scenario.
        pub const SCENARIOS: &[Scenario] = &[$(Scenario {
            name: stringify!($name),
            warm_up: WarmUp::$warm_up,
            expectation: expectation(&[$($why)?]),
        }),*];
    };
}

for_every_scenario!(table);

const fn expectation(why: &[&'static str]) -> Expectation {
    match why {
        [] => Expectation::Equal,
        [why, ..] => Expectation::Differs(why),
    }
}
