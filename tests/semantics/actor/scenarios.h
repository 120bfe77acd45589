/* The one list of scenarios: SCENARIO(name) for each, by file. */

/* calls.c */
SCENARIO(echo_sizes)
SCENARIO(many_small_round_trips)
SCENARIO(read_write)
SCENARIO(vectors)
SCENARIO(long_vectors)
SCENARIO(send_recv)
SCENARIO(sendto_recvfrom)
SCENARIO(sendmsg_recvmsg)
SCENARIO(sendmmsg_recvmmsg)
SCENARIO(bad_arguments)
SCENARIO(calls_for_other_files)
SCENARIO(both_ways_at_once)
SCENARIO(one_way_from_the_start)

/* flags.c */
SCENARIO(msg_peek)
SCENARIO(peek_blocks)
SCENARIO(msg_waitall)
SCENARIO(waitall_large)
SCENARIO(msg_dontwait)
SCENARIO(msg_trunc)
SCENARIO(msg_more)
SCENARIO(unknown_flags)
SCENARIO(msg_zerocopy)

/* modes.c */
SCENARIO(fionread)
SCENARIO(outq_drains)
SCENARIO(outq_while_full)
SCENARIO(nonblocking_ways)
SCENARIO(nonblocking_is_shared)
SCENARIO(accept4_flags)
SCENARIO(full_then_drained)
SCENARIO(blocked_writer)

/* readiness.c */
SCENARIO(poll_bits)
SCENARIO(poll_timeouts)
SCENARIO(poll_mixed)
SCENARIO(select_mixed)
SCENARIO(poll_duplicates)
SCENARIO(wait_with_signal_mask)
SCENARIO(poll_writable)

/* epoll.c */
SCENARIO(epoll_level)
SCENARIO(epoll_edge)
SCENARIO(epoll_edge_writable)
SCENARIO(epoll_edge_read_before)
SCENARIO(epoll_oneshot)
SCENARIO(epoll_hangup)
SCENARIO(epoll_ctl_errors)
SCENARIO(epoll_delete_and_add_again)
SCENARIO(epoll_changes_between_waits)
SCENARIO(epoll_changes_between_waits_cold)
SCENARIO(epoll_before_connect)
SCENARIO(epoll_mixed_kinds)

/* epoll_sets.c */
SCENARIO(epoll_two_sets)
SCENARIO(epoll_dup)
SCENARIO(epoll_number_reused)
SCENARIO(epoll_nested)
SCENARIO(epoll_small_room)
SCENARIO(epoll_two_threads)
SCENARIO(epoll_add_while_waiting)
SCENARIO(epoll_shared_by_fork)
SCENARIO(epoll_entry_outlives_close)

/* closing.c */
SCENARIO(half_close)
SCENARIO(shutdown_read)
SCENARIO(shutdown_both)
SCENARIO(shutdown_unconnected)
SCENARIO(simultaneous_close)
SCENARIO(close_with_unread_bytes)
SCENARIO(write_after_peer_closed)
SCENARIO(killed_by_broken_pipe)
SCENARIO(so_error_after_reset)
SCENARIO(linger_zero)
SCENARIO(close_is_known_at_once)
SCENARIO(linger_waits)
SCENARIO(close_right_after_writing)
SCENARIO(exit_right_after_writing)
SCENARIO(close_then_lower_unread)
SCENARIO(close_then_write_before_reading)

/* death.c */
SCENARIO(peer_killed)
SCENARIO(peer_killed_with_unread_bytes)
SCENARIO(peer_killed_while_reading)
SCENARIO(peer_killed_while_writing)
SCENARIO(peer_killed_while_polling)
SCENARIO(peer_killed_in_mid_stream)
SCENARIO(peer_stopped)

/* options.c */
SCENARIO(receive_timeout)
SCENARIO(send_timeout)
SCENARIO(receive_low_water)
SCENARIO(addresses)
SCENARIO(socket_options)
SCENARIO(tcp_info_counts)
SCENARIO(upper_layer_protocol)

/* connecting.c */
SCENARIO(nonblocking_connect)
SCENARIO(connect_refused)
SCENARIO(gone_before_accept)
SCENARIO(written_before_accept)
SCENARIO(connected_to_itself)
SCENARIO(self_connect)
SCENARIO(ipv6)
SCENARIO(many_short_connections)

/* descriptors.c */
SCENARIO(dup_family)
SCENARIO(dup2_over_connection)
SCENARIO(dup2_onto_connection)
SCENARIO(lowest_number)
SCENARIO(close_all_others)
SCENARIO(close_everything_and_reconnect)
SCENARIO(descriptor_limit)
SCENARIO(descriptor_limit_lowered)
SCENARIO(close_one_dup)

/* processes.c */
SCENARIO(fork_in_turns)
SCENARIO(fork_child_leaves)
SCENARIO(fork_half_read)
SCENARIO(fork_parent_leaves)
SCENARIO(fork_per_connection)
SCENARIO(fork_one_reads_one_writes)
SCENARIO(fork_child_killed)
SCENARIO(other_programs)
SCENARIO(fork_then_warm)
SCENARIO(fork_both_wait)
SCENARIO(relative_lets_go_of_reader)
SCENARIO(relative_lets_go_of_poller)
SCENARIO(relative_lets_go_of_epoll)

/* exec.c */
SCENARIO(exec_shell)
SCENARIO(exec_cat)
SCENARIO(exec_static)
SCENARIO(exec_in_place)
SCENARIO(exec_half_read)
SCENARIO(exec_self)
SCENARIO(exec_without_environment)
SCENARIO(exec_fails)
SCENARIO(exec_closes)
SCENARIO(spawn_on_connection)
SCENARIO(system_on_connection)
SCENARIO(exec_while_peer_is_stopped)
SCENARIO(exec_inherits_epoll_set)

/* passing.c */
SCENARIO(pass_to_same_program)
SCENARIO(pass_to_disabled)
SCENARIO(pass_without_environment)
SCENARIO(pass_to_static)
SCENARIO(pass_to_forked)
SCENARIO(pass_and_close)
SCENARIO(pass_while_peer_is_stopped)
SCENARIO(pass_to_itself)

/* urgent.c */
SCENARIO(urgent_byte)
SCENARIO(urgent_inline)
SCENARIO(urgent_signal)

/* files.c */
SCENARIO(sendfile)
SCENARIO(sendfile_nonblocking)
SCENARIO(splice_from_connection)
SCENARIO(splice_to_connection)

/* stdio.c */
SCENARIO(stdio_stream)
SCENARIO(stdio_unread_bytes)
SCENARIO(stdio_bulk)
SCENARIO(stdio_broken_pipe)
SCENARIO(stdio_as_standard_output)

/* other_doors.c */
SCENARIO(syscall_function)
SCENARIO(dlsym_default)
SCENARIO(dlsym_next)
SCENARIO(dlsym_libc_handle)
SCENARIO(dlvsym)
SCENARIO(bare_instructions)

/* uring.c */
SCENARIO(uring_send_and_receive)

/* fortified.c */
SCENARIO(fortified_calls)

/* threads.c */
SCENARIO(thread_send_while_recv)
SCENARIO(thread_shutdown_while_recv)
SCENARIO(thread_close_while_recv)
SCENARIO(thread_number_reused_while_recv)
SCENARIO(thread_shutdown_while_send)
SCENARIO(thread_cancelled_in_recv)
SCENARIO(thread_many_writers)
SCENARIO(thread_many_readers)
SCENARIO(thread_both_ways_from_the_start)
SCENARIO(thread_fork_while_recv)

/* signals.c */
SCENARIO(signal_interrupts)
SCENARIO(signal_restarts)
SCENARIO(signal_with_timeout)
SCENARIO(signal_in_waitall)
SCENARIO(signal_in_send)
SCENARIO(longjmp_out_of_recv)
SCENARIO(longjmp_out_of_send)
SCENARIO(send_in_handler)
SCENARIO(signal_storm)
SCENARIO(signal_driven_input)

/* crowd.c */
SCENARIO(crowd)
SCENARIO(idle)
SCENARIO(warm_and_wait)

/* boundaries.c */
SCENARIO(all_in_one_read)
SCENARIO(peek_for_all)
SCENARIO(recvmmsg_ends)
SCENARIO(send_to_shut_down)
SCENARIO(send_after_shutdown_read)
SCENARIO(shutdown_again)
SCENARIO(error_before_broken_pipe)
SCENARIO(reset_after_end)
SCENARIO(waitall_before_reset)
SCENARIO(sendfile_after_end)
SCENARIO(peer_ran_another)
SCENARIO(peer_ran_another_then_fork)
SCENARIO(peer_ran_another_then_end)
SCENARIO(peer_ran_another_then_file)
SCENARIO(read_across_programs)
SCENARIO(both_ran_another)
SCENARIO(both_ran_another_half_read)
SCENARIO(both_ran_another_read_on)
SCENARIO(both_ran_another_large)
SCENARIO(both_ran_another_at_once)
SCENARIO(read_behind_another_program)
SCENARIO(read_all_behind_another_program)
SCENARIO(other_program_after_shutdown)

/* switching.c */
SCENARIO(readable_while_lifted)
SCENARIO(closed_while_lifted)
