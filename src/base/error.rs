//! The one error type and the one table of codes: wire string ↔ errno ↔ exit status ↔ HTTP status ↔
//! log level. Codes are the contract; messages are for people and name the field, path or setting.

use std::borrow::Cow;
use std::fmt;

/// How loudly the log speaks of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

macro_rules! codes {
    ($($name:ident $wire:literal $errno:ident $exit:literal $http:literal $level:ident)*) => {
        /// What went wrong, as the wire names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($name,)* }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The string that stands in `error.code` on the wire.
            pub const fn wire(self) -> &'static str { match self { $(Code::$name => $wire,)* } }
            /// The errno that a filesystem client sees when the error carries none of its own.
            pub const fn errno(self) -> i32 { match self { $(Code::$name => libc::$errno,)* } }
            /// Exit status of a command-line program (sysexits.h).
            pub const fn exit(self) -> u8 { match self { $(Code::$name => $exit,)* } }
            /// HTTP status, where the error is answered over HTTP.
            pub const fn http(self) -> u16 { match self { $(Code::$name => $http,)* } }
            /// Log level.
            pub const fn level(self) -> Level { match self { $(Code::$name => Level::$level,)* } }
        }
    };
}

// name                    wire                           errno        exit http level
codes! {
    // Filesystem and Acheron (spec: namespace 2.4).
    Enoent                 "enoent"                       ENOENT       66 404 Debug
    Eexist                 "eexist"                       EEXIST       73 409 Debug
    Eisdir                 "eisdir"                       EISDIR       65 400 Debug
    Enotdir                "enotdir"                      ENOTDIR      65 400 Debug
    Enotempty              "enotempty"                    ENOTEMPTY    65 409 Debug
    Eperm                  "eperm"                        EACCES       77 403 Debug
    Erofs                  "erofs"                        EROFS        77 403 Debug
    Ebadf                  "ebadf"                        EBADF        65 400 Debug
    Exdev                  "exdev"                        EXDEV        65 400 Debug
    Enosys                 "enosys"                       ENOSYS       69 501 Debug
    Enospc                 "enospc"                       ENOSPC       74 507 Warn
    Estale                 "estale"                       ESTALE       66 410 Debug
    Eio                    "eio"                          EIO          74 500 Warn
    Again                  "again"                        EAGAIN       75 503 Debug
    Cancelled              "cancelled"                    EINTR        75 499 Debug
    Timeout                "timeout"                      ETIMEDOUT    75 504 Info
    Unavailable            "unavailable"                  EIO          69 503 Info
    Invalid                "invalid"                      EINVAL       65 400 Debug
    InvalidType            "invalid_type"                 EINVAL       76 400 Debug
    Unsupported            "unsupported"                  ENOSYS       69 501 Debug
    // Envelopes and gates (spec: control 8.11).
    UnsupportedLegacyApi   "unsupported_legacy_api"       EINVAL       76 400 Debug
    ProtocolMismatch       "protocol_mismatch"            EPROTO       76 400 Debug
    InvalidEnvelope        "invalid_envelope"             EINVAL       76 400 Debug
    InvalidEndpoint        "invalid_endpoint"             EINVAL       76 404 Debug
    ProvisioningRequired   "provisioning_required"        EACCES       77 403 Debug
    ProjectContextRequired "project_context_required"     EACCES       77 403 Debug
    Forbidden              "forbidden"                    EACCES       77 403 Info
    CorrelationRequired    "correlation_required"         EINVAL       64 400 Debug
    OperatorAuthFailed     "operator_auth_failed"         EACCES       77 403 Warn
    MissingField           "missing_field"                EINVAL       64 400 Debug
    InvalidPayload         "invalid_payload"              EINVAL       65 400 Debug
    NotFound               "not_found"                    ENOENT       66 404 Debug
    SessionBusy            "session_busy"                 EBUSY        75 409 Debug
    SessionNotFound        "session_not_found"            ENOENT       66 404 Debug
    StorageError           "storage_error"                EIO          74 500 Error
    LimitExceeded          "limit_exceeded"               ENOSPC       69 429 Info
    PreconditionFailed     "precondition_failed"          ESTALE       75 412 Debug
    QueueSaturated         "queue_saturated"              EAGAIN       75 503 Info
    ControlPlaneError      "control_plane_error"          EIO          70 500 Error
    // Nodes, agents, projects.
    InviteNotFound         "invite_not_found"             ENOENT       66 404 Info
    InviteExpired          "invite_expired"               EACCES       77 403 Info
    InviteRedeemed         "invite_redeemed"              EACCES       77 403 Info
    PendingJoinNotFound    "pending_join_not_found"       ENOENT       66 404 Info
    NodeNotFound           "node_not_found"               ENOENT       66 404 Debug
    NodeAuthFailed         "node_auth_failed"             EACCES       77 403 Warn
    AgentNotFound          "agent_not_found"              ENOENT       66 404 Debug
    ProjectNotFound        "project_not_found"            ENOENT       66 404 Debug
    ProjectAuthFailed      "project_auth_failed"          EACCES       77 403 Info
    ProjectProtected       "project_protected"            EACCES       77 403 Debug
    ProjectAssignmentForbidden "project_assignment_forbidden" EACCES   77 403 Debug
    ProjectPolicyForbidden "project_policy_forbidden"     EACCES       77 403 Debug
    MountConflict          "mount_conflict"               EEXIST       65 409 Debug
    MountNotFound          "mount_not_found"              ENOENT       66 404 Debug
    BindConflict           "bind_conflict"                EEXIST       65 409 Debug
    BindNotFound           "bind_not_found"               ENOENT       66 404 Debug
    TemplateNotFound       "template_not_found"           ENOENT       66 404 Debug
    // Runtime and providers (spec: runtime 6.2, 3.4).
    ExecutionFailed        "execution_failed"             EIO          70 500 Warn
    MissingApiKey          "missing_api_key"              EACCES       78 503 Warn
    ModelNotFound          "model_not_found"              EINVAL       78 400 Warn
    ProviderNotFound       "provider_not_found"           EINVAL       78 400 Warn
    ProviderAuthFailed     "provider_auth_failed"         EACCES       77 401 Warn
    ProviderRateLimited    "provider_rate_limited"        EAGAIN       75 429 Warn
    ProviderRequestInvalid "provider_request_invalid"     EINVAL       65 400 Warn
    ProviderTimeout        "provider_timeout"             ETIMEDOUT    75 504 Warn
    ProviderUnavailable    "provider_unavailable"         EIO          69 503 Warn
    RuntimeTimeout         "runtime_timeout"              ETIMEDOUT    75 504 Warn
    RuntimeCancelled       "runtime_cancelled"            EINTR        75 499 Info
    // Programs: settings, listening, local files.
    Usage                  "usage"                        EINVAL       64 400 Info
    Config                 "invalid_config"               EINVAL       78 500 Error
    AddressInUse           "address_in_use"               EADDRINUSE   69 500 Error
    Refused                "connection_refused"           ECONNREFUSED 69 502 Info
}

impl Code {
    /// The code that a wire string names, if any.
    pub fn from_wire(s: &str) -> Option<Code> {
        Code::ALL.iter().copied().find(|c| c.wire() == s)
    }

    /// The code under which an errno is reported where only codes travel.
    pub fn from_errno(errno: i32) -> Code {
        match errno {
            libc::ENOENT => Code::Enoent,
            libc::EEXIST => Code::Eexist,
            libc::EISDIR => Code::Eisdir,
            libc::ENOTDIR => Code::Enotdir,
            libc::ENOTEMPTY => Code::Enotempty,
            libc::EACCES | libc::EPERM => Code::Eperm,
            libc::EROFS => Code::Erofs,
            libc::EBADF => Code::Ebadf,
            libc::EXDEV => Code::Exdev,
            libc::ENOSYS | libc::EOPNOTSUPP => Code::Enosys,
            libc::ENOSPC | libc::EDQUOT => Code::Enospc,
            libc::ESTALE => Code::Estale,
            libc::EAGAIN => Code::Again,
            libc::EINTR => Code::Cancelled,
            libc::ETIMEDOUT => Code::Timeout,
            libc::EINVAL => Code::Invalid,
            libc::EADDRINUSE => Code::AddressInUse,
            libc::ECONNREFUSED => Code::Refused,
            _ => Code::Eio,
        }
    }
}

/// An error: a code of the table, the exact errno where the host gave one, and words for people.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    pub code: Code,
    errno: i32,
    pub message: Cow<'static, str>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Error {
        Error { code, errno: code.errno(), message: message.into() }
    }

    /// An error known by its errno (Linux numbers), for example from a peer.
    pub fn from_errno(errno: i32, message: impl Into<Cow<'static, str>>) -> Error {
        Error { code: Code::from_errno(errno), errno, message: message.into() }
    }

    /// The calling thread's `errno`.
    pub fn last_os() -> Error {
        std::io::Error::last_os_error().into()
    }

    pub fn missing(field: &str) -> Error {
        Error::new(Code::MissingField, format!("{field} is required"))
    }

    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
        Error::new(Code::Invalid, message)
    }

    /// The errno for filesystem clients; always a positive Linux number.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// The same error with words put in front: `context: message`; once, if they stand there already.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Error {
        let context = format!("{context}: ");
        if self.message.starts_with(&context) {
            return self;
        }
        Error { message: (context + &self.message).into(), ..self }
    }

    /// The same error under another code; the errno becomes that code's.
    #[must_use]
    pub fn recode(self, code: Code) -> Error {
        Error { code, errno: code.errno(), message: self.message }
    }

    /// True where the other end of a connection, not the operation, is the trouble.
    pub fn is_peer_lost(&self) -> bool {
        matches!(self.code, Code::Unavailable | Code::Refused)
    }
}

/// `context` on results.
pub trait ResultExt<T> {
    /// Puts words in front of an error's message.
    fn context(self, context: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for std::result::Result<T, E> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.into().context(context))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code.wire(), self.errno, self.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Error {
        match e.raw_os_error() {
            Some(errno) => {
                let text = nix::errno::Errno::from_raw(errno).desc();
                Error::from_errno(errno, text.to_lowercase())
            }
            None => {
                let code = match e.kind() {
                    std::io::ErrorKind::NotFound => Code::Enoent,
                    std::io::ErrorKind::TimedOut => Code::Timeout,
                    std::io::ErrorKind::UnexpectedEof => Code::Unavailable,
                    std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
                        Code::Invalid
                    }
                    _ => Code::Eio,
                };
                Error::new(code, e.to_string())
            }
        }
    }
}

impl From<nix::errno::Errno> for Error {
    fn from(e: nix::errno::Errno) -> Error {
        Error::from_errno(e as i32, e.desc().to_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_names_are_unique_and_lead_back() {
        for code in Code::ALL {
            assert_eq!(Code::from_wire(code.wire()), Some(*code));
        }
    }

    #[test]
    fn an_errno_from_the_host_is_kept_exactly() {
        let e = Error::from(std::io::Error::from_raw_os_error(libc::ELOOP));
        assert_eq!((e.errno(), e.code), (libc::ELOOP, Code::Eio));
        assert_eq!(Error::new(Code::QueueSaturated, "full").errno(), libc::EAGAIN);
    }
}
