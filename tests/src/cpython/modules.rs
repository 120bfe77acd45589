//! Which of the interpreter's modules have to do with sockets, descriptors, processes or signals.

/// One module of the interpreter's tests.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// As `python3 -m test` knows it.
    pub name: &'static str,
    /// Whether it is short enough for every change: a few seconds.
    pub short: bool,
    pub(super) arguments: &'static [&'static str],
}

const fn short(name: &'static str) -> Module {
    Module { name, short: true, arguments: &[] }
}

const fn long(name: &'static str) -> Module {
    Module { name, short: false, arguments: &[] }
}

/// Every module, those about connections first.
pub const MODULES: &[Module] = &[
    Module {
        name: "test_socket",
        short: true,
        // Where a kernel has AF_VSOCK but no host answers, this one waits for ever.
        arguments: &["-i", "test.test_socket.ThreadedVSOCKSocketStreamTest.*"],
    },
    // Asked for the network, it uses the loopback interface.
    Module { name: "test_socketserver", short: true, arguments: &["-u", "network"] },
    short("test_select"),
    short("test_epoll"),
    short("test_httplib"),
    short("test_httpservers"),
    short("test_ftplib"),
    short("test_smtplib"),
    short("test_smtpd"),
    short("test_poplib"),
    short("test_nntplib"),
    short("test_telnetlib"),
    short("test_urllib2_localnet"),
    short("test_docxmlrpc"),
    short("test_wsgiref"),
    short("test_asyncore"),
    short("test_asynchat"),
    long("test_selectors"),
    long("test_poll"),
    long("test_imaplib"),
    long("test_xmlrpc"),
    long("test_ssl"),
    long("test_asyncio"),
    long("test_logging"),
    long("test_urllib"),
    long("test_urllib2"),
    long("test_robotparser"),
    // Processes, signals and descriptors.
    long("test_signal"),
    long("test_threadsignals"),
    long("test_eintr"),
    long("test_subprocess"),
    long("test_popen"),
    long("test_fork1"),
    long("test_wait3"),
    long("test_os"),
    long("test_posix"),
    long("test_pty"),
    long("test_openpty"),
    long("test_fcntl"),
    long("test_mmap"),
    long("test_resource"),
    long("test_io"),
    long("test_file_eintr"),
    long("test_thread"),
    long("test_threading"),
    long("test_faulthandler"),
    long("test_cmd_line"),
    long("test_site"),
    long("test_support"),
    long("test_concurrent_futures"),
    long("test_multiprocessing_fork"),
    long("test_multiprocessing_forkserver"),
    long("test_multiprocessing_spawn"),
];
