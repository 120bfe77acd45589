//! Every scenario in every way: the transcripts must be those of the kernel.

mod judge;

macro_rules! scenarios {
    ($($name:ident)*) => {
        const PLAYED: &[&str] = &[$(stringify!($name)),*];

        $(
            #[test]
            fn $name() {
                judge::judge(stringify!($name));
            }
        )*
    };
}

scenarios! {
    // calls.c
    echo_sizes
    many_small_round_trips
    read_write
    vectors
    long_vectors
    send_recv
    sendto_recvfrom
    sendmsg_recvmsg
    sendmmsg_recvmmsg
    bad_arguments
    calls_for_other_files
    both_ways_at_once
    one_way_from_the_start
    // flags.c
    msg_peek
    peek_blocks
    msg_waitall
    waitall_large
    msg_dontwait
    msg_trunc
    msg_more
    unknown_flags
    msg_zerocopy
    // modes.c
    fionread
    outq_drains
    outq_while_full
    nonblocking_ways
    nonblocking_is_shared
    accept4_flags
    full_then_drained
    blocked_writer
    // readiness.c
    poll_bits
    poll_timeouts
    poll_mixed
    select_mixed
    poll_duplicates
    wait_with_signal_mask
    poll_writable
    // epoll.c
    epoll_level
    epoll_edge
    epoll_edge_writable
    epoll_edge_room_after_news
    epoll_edge_read_before
    epoll_oneshot
    epoll_hangup
    epoll_ctl_errors
    epoll_delete_and_add_again
    epoll_changes_between_waits
    epoll_changes_between_waits_cold
    epoll_before_connect
    epoll_mixed_kinds
    // epoll_sets.c
    epoll_two_sets
    epoll_dup
    epoll_number_reused
    epoll_nested
    epoll_small_room
    epoll_each_once
    epoll_two_threads
    epoll_add_while_waiting
    epoll_armed_while_waiting
    epoll_shared_by_fork
    epoll_entry_outlives_close
    // closing.c
    half_close
    shutdown_read
    shutdown_both
    shutdown_unconnected
    simultaneous_close
    close_with_unread_bytes
    write_after_peer_closed
    killed_by_broken_pipe
    so_error_after_reset
    linger_zero
    close_is_known_at_once
    linger_waits
    close_right_after_writing
    exit_right_after_writing
    close_then_lower_unread
    close_then_write_before_reading
    // death.c
    peer_killed
    peer_killed_with_unread_bytes
    peer_killed_while_reading
    peer_killed_while_writing
    peer_killed_while_polling
    peer_killed_in_mid_stream
    peer_stopped
    // options.c
    receive_timeout
    send_timeout
    receive_low_water
    addresses
    socket_options
    tcp_info_counts
    upper_layer_protocol
    // connecting.c
    nonblocking_connect
    connect_refused
    gone_before_accept
    written_before_accept
    connected_to_itself
    self_connect
    ipv6
    many_short_connections
    // descriptors.c
    dup_family
    dup2_over_connection
    dup2_onto_connection
    lowest_number
    close_all_others
    close_everything_and_reconnect
    descriptor_limit
    descriptor_limit_lowered
    close_one_dup
    // processes.c
    fork_in_turns
    fork_child_leaves
    fork_half_read
    fork_parent_leaves
    fork_by_other_means
    sandboxed_while_young
    fork_per_connection
    fork_one_reads_one_writes
    fork_child_killed
    other_programs
    fork_then_warm
    fork_both_wait
    relative_lets_go_of_reader
    relative_lets_go_of_poller
    relative_lets_go_of_epoll
    // exec.c
    exec_shell
    exec_cat
    exec_static
    exec_in_place
    exec_half_read
    exec_self
    exec_without_environment
    exec_fails
    exec_closes
    spawn_on_connection
    system_on_connection
    exec_while_peer_is_stopped
    exec_inherits_epoll_set
    // passing.c
    pass_to_same_program
    pass_to_disabled
    pass_without_environment
    pass_to_static
    pass_to_forked
    pass_and_close
    pass_while_peer_is_stopped
    pass_to_itself
    lifted_after_exec
    lifted_in_child_program
    lifted_off_standard_input
    lifted_after_passing
    lifted_after_peeking
    shared_by_programs
    shared_by_programs_then_alone
    connected_by_next_program
    exec_inherits_epoll_set_and_library
    // urgent.c
    urgent_byte
    urgent_inline
    urgent_signal
    // files.c
    sendfile
    sendfile_nonblocking
    splice_from_connection
    splice_to_connection
    // stdio.c
    stdio_stream
    stdio_unread_bytes
    stdio_bulk
    stdio_broken_pipe
    stdio_as_standard_output
    // other_doors.c
    syscall_function
    dlsym_default
    dlsym_next
    dlsym_libc_handle
    dlvsym
    bare_instructions
    // uring.c
    uring_send_and_receive
    // fortified.c
    fortified_calls
    // threads.c
    thread_send_while_recv
    thread_shutdown_while_recv
    thread_close_while_recv
    thread_number_reused_while_recv
    thread_shutdown_while_send
    thread_cancelled_in_recv
    thread_many_writers
    thread_many_readers
    thread_both_ways_from_the_start
    thread_fork_while_recv
    // signals.c
    signal_interrupts
    signal_restarts
    signal_with_timeout
    signal_in_waitall
    signal_in_send
    longjmp_out_of_recv
    longjmp_out_of_send
    send_in_handler
    signal_storm
    signal_driven_input
    // crowd.c
    crowd
    idle
    warm_and_wait
    // boundaries.c
    all_in_one_read
    peek_for_all
    recvmmsg_ends
    send_to_shut_down
    send_after_shutdown_read
    shutdown_again
    error_before_broken_pipe
    reset_after_end
    waitall_before_reset
    sendfile_after_end
    peer_ran_another
    peer_ran_another_then_fork
    peer_ran_another_then_end
    peer_ran_another_then_file
    read_across_programs
    both_ran_another
    both_ran_another_half_read
    both_ran_another_read_on
    both_ran_another_large
    both_ran_another_at_once
    read_behind_another_program
    read_all_behind_another_program
    other_program_after_shutdown
    readable_while_lifted
    closed_while_lifted
    vfork_while_lifted
    // loans.c
    loan_round_trips
    loan_bulk
    loan_of_grown_rings
    loan_rules
    loan_arguments
    loan_waits
    loan_waits_for_room
    loan_ends
    loan_of_the_killed
    loan_lowered_by_receiver
    loan_lowered_by_sender
    loan_and_another_program
    loan_and_fork
    loan_and_close
    loan_threads
    loan_edges
    loan_while_lifted
    // parking.c
    parked_and_used
    parked_under_sleep
    parked_one_shot
    parked_then_forked
    parked_then_spawned
    parked_then_half_closed
    parked_then_closed
    parked_peer_killed
    parked_race
}

/// The actor, the table and this file name the same scenarios: none is forgotten.
#[test]
fn every_scenario_is_judged() {
    let table: Vec<_> = vmmc_semantics::SCENARIOS.iter().map(|scenario| scenario.name).collect();
    assert_eq!(judge::actor().scenarios().expect("the actor lists its scenarios"), table);
    assert_eq!(table, PLAYED);
}
