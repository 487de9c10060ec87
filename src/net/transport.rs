//! A non-blocking byte stream: TCP, or TLS over TCP (client side). Reading and writing may happen on
//! different threads at the same time.

use crate::base::{Code, Deadline, Error, Result};
use bytes::{Buf, Bytes};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// Pieces handed to the kernel in one call.
const PIECES: usize = 64;

/// A peer whose kernel acknowledges nothing for this long is gone, even where it need not answer
/// pings.
const UNACKNOWLEDGED_MAX_MS: u32 = 60_000;

pub(super) struct Transport {
    tcp: TcpStream,
    tls: Option<Mutex<ClientConnection>>,
}

impl Transport {
    /// Takes over a connected socket: non-blocking, without Nagle's delay.
    pub fn plain(tcp: TcpStream) -> io::Result<Transport> {
        tcp.set_nonblocking(true)?;
        tcp.set_nodelay(true)?;
        setsockopt(&tcp, TcpUserTimeout, &UNACKNOWLEDGED_MAX_MS)?;
        Ok(Transport { tcp, tls: None })
    }

    /// Shakes hands as a TLS client of `host` before the deadline passes.
    pub fn secure(self, host: &str, deadline: Deadline) -> Result<Transport> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Error::invalid(format!("{host:?} is not a name TLS can check")))?;
        let mut session = ClientConnection::new(client_config()?, name).map_err(tls_error)?;
        let mut socket = Patient { tcp: &self.tcp, deadline };
        session.complete_io(&mut socket).map_err(|e| match e.kind() {
            ErrorKind::TimedOut => Error::new(Code::Timeout, "no TLS handshake in time"),
            _ => Error::new(Code::Unavailable, format!("TLS: {e}")),
        })?;
        Ok(Transport { tls: Some(Mutex::new(session)), ..self })
    }

    /// True where a read that does not fill its buffer has emptied the socket.
    pub fn short_read_is_dry(&self) -> bool {
        self.tls.is_none()
    }

    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return (&self.tcp).read(buffer) };
        let mut session = tls.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match session.reader().read(buffer) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            session.read_tls(&mut &self.tcp)?;
            let processed = session.process_new_packets();
            // Alerts and key updates; what does not fit now goes with the next write.
            if session.wants_write() {
                let _ = session.write_tls(&mut &self.tcp);
            }
            processed.map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?;
        }
    }

    /// Writes pieces from the front of `queue` until it is empty, `limit` bytes are gone, or the
    /// stream takes no more; says how many bytes went and why it ended early.
    pub fn write(&self, queue: &mut VecDeque<Bytes>, limit: usize) -> (usize, io::Result<()>) {
        let mut written = 0;
        while !queue.is_empty() && written < limit {
            let mut pieces = [IoSlice::new(&[]); PIECES];
            let count = queue.len().min(PIECES);
            for (slot, piece) in pieces.iter_mut().zip(queue.iter()) {
                *slot = IoSlice::new(piece);
            }
            match self.write_vectored(&pieces[..count]) {
                Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
                Ok(n) => {
                    written += n;
                    advance(queue, n);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return (written, Err(e)),
            }
        }
        (written, self.flush())
    }

    fn write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &self.tls else {
            // A lone piece is the usual case, and the plain call is a little cheaper.
            return match pieces {
                [piece] => (&self.tcp).write(piece),
                _ => (&self.tcp).write_vectored(pieces),
            };
        };
        let mut session = tls.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = session.writer().write_vectored(pieces)?;
        match push_records(&mut session, &self.tcp) {
            // Its buffer was full and stays so.
            Err(e) if taken == 0 => Err(e),
            Err(e) if e.kind() != ErrorKind::WouldBlock => Err(e),
            _ => Ok(taken),
        }
    }

    /// `WouldBlock` while TLS records wait for room in the socket.
    fn flush(&self) -> io::Result<()> {
        let Some(tls) = &self.tls else { return Ok(()) };
        let mut session = tls.lock().unwrap_or_else(PoisonError::into_inner);
        push_records(&mut session, &self.tcp)
    }

    /// Says that nothing more will be written.
    pub fn finish(&self) {
        if let Some(tls) = &self.tls {
            let mut session = tls.lock().unwrap_or_else(PoisonError::into_inner);
            session.send_close_notify();
            let _ = push_records(&mut session, &self.tcp);
        }
        let _ = self.tcp.shutdown(Shutdown::Write);
    }

    /// Whether bytes, or the stream's end, have come.
    pub fn is_readable(&self) -> bool {
        let mut fds = [PollFd::new(self.tcp.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }

    /// Waits until a read or write that would block is worth trying again.
    pub fn wait(&self, for_what: PollFlags, deadline: Deadline) -> io::Result<()> {
        wait(&self.tcp, for_what, deadline)
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

fn push_records(session: &mut ClientConnection, mut tcp: &TcpStream) -> io::Result<()> {
    while session.wants_write() {
        session.write_tls(&mut tcp)?;
    }
    Ok(())
}

fn advance(queue: &mut VecDeque<Bytes>, mut n: usize) {
    while let Some(front) = queue.front_mut() {
        if n < front.len() {
            front.advance(n);
            return;
        }
        n -= front.len();
        queue.pop_front();
    }
}

fn wait(tcp: &TcpStream, for_what: PollFlags, deadline: Deadline) -> io::Result<()> {
    // One millisecond more than is left, so that the deadline has passed when the time is up.
    let ms = deadline.left().as_millis().saturating_add(1);
    let timeout = PollTimeout::from(u16::try_from(ms).unwrap_or(u16::MAX));
    match nix::poll::poll(&mut [PollFd::new(tcp.as_fd(), for_what)], timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) if deadline.passed() => {
            Err(ErrorKind::TimedOut.into())
        }
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// A non-blocking socket read and written as a blocking one, until a deadline.
struct Patient<'a> {
    tcp: &'a TcpStream,
    deadline: Deadline,
}

impl Patient<'_> {
    fn retry<T>(
        &mut self,
        for_what: PollFlags,
        mut f: impl FnMut(&mut &TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match f(&mut self.tcp) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    wait(self.tcp, for_what, self.deadline)?;
                }
                done => return done,
            }
        }
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.retry(PollFlags::POLLIN, |tcp| tcp.read(buffer))
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.retry(PollFlags::POLLOUT, |tcp| tcp.write(data))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tls_error(e: rustls::Error) -> Error {
    Error::new(Code::Unavailable, format!("TLS: {e}"))
}

/// Trusts the Mozilla roots and, where `SSL_CERT_FILE` names a PEM file, the certificates in it.
fn client_config() -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = std::env::var_os("SSL_CERT_FILE") {
        let shown = path.to_string_lossy().into_owned();
        let bad = |e: &dyn std::fmt::Display| {
            Error::new(Code::Config, format!("SSL_CERT_FILE {shown:?}: {e}"))
        };
        for certificate in CertificateDer::pem_file_iter(&path).map_err(|e| bad(&e))? {
            roots.add(certificate.map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(tls_error)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
