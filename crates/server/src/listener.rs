//! Where connections come from: a TCP port or a Unix socket.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::config::ServerConfig;
use crate::connection::Transport;
use crate::error::ServerError;

/// A socket that listens. It belongs to no async runtime yet, so it can be opened before there is one.
#[derive(Debug)]
pub(crate) enum BoundListener {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket, which goes with it.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whatever else lies there by now is not ours.
        if fs::symlink_metadata(&self.0).is_ok_and(|data| data.file_type().is_socket()) {
            let _ = fs::remove_file(&self.0);
        }
    }
}

impl BoundListener {
    pub(crate) fn bind(config: &ServerConfig) -> Result<Self, ServerError> {
        match &config.uds {
            Some(path) => bind_unix(path),
            None => bind_tcp(config),
        }
    }

    /// What clients connect to.
    pub(crate) fn address(&self) -> String {
        match self {
            BoundListener::Tcp(_, address) => format!("http://{address}"),
            BoundListener::Unix(_, SocketFile(path)) => format!("unix:{}", path.display()),
        }
    }

    pub(crate) fn socket_address(&self) -> Option<SocketAddr> {
        match self {
            BoundListener::Tcp(_, address) => Some(*address),
            BoundListener::Unix(..) => None,
        }
    }

    /// Hands the socket to the runtime that this is called on.
    pub(crate) fn into_async(self) -> Result<Listener, ServerError> {
        let failed = |cause| ServerError::System { action: "handing the socket to the runtime", cause };
        match self {
            BoundListener::Tcp(listener, _) => {
                Ok(Listener::Tcp(tokio::net::TcpListener::from_std(listener).map_err(failed)?))
            }
            BoundListener::Unix(listener, file) => {
                Ok(Listener::Unix(tokio::net::UnixListener::from_std(listener).map_err(failed)?, file))
            }
        }
    }
}

fn bind_tcp(config: &ServerConfig) -> Result<BoundListener, ServerError> {
    let host = config.host.trim_start_matches('[').trim_end_matches(']');
    let unknown = |cause: String| ServerError::UnknownHost { host: config.host.escape_debug().to_string(), cause };
    let addresses: Vec<SocketAddr> =
        (host, config.port).to_socket_addrs().map_err(|error| unknown(error.to_string()))?.collect();
    let Some(first) = addresses.first() else { return Err(unknown("nothing was found".to_owned())) };
    let public = addresses.iter().find(|address| !address.ip().to_canonical().is_loopback());
    if let Some(address) = public.filter(|_| config.api_keys.is_empty() && !config.allow_public_without_key) {
        return Err(ServerError::PublicWithoutKey { address: address.to_string() });
    }
    let failed = |cause: io::Error| bind_error(first.to_string(), cause);
    let listener = TcpListener::bind(addresses.as_slice()).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(BoundListener::Tcp(listener, address))
}

fn bind_unix(path: &Path) -> Result<BoundListener, ServerError> {
    let failed = |cause: io::Error| bind_error(path.display().to_string(), cause);
    let listener = UnixListener::bind(path).map_err(failed)?;
    let file = SocketFile(path.to_owned());
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(BoundListener::Unix(listener, file))
}

fn bind_error(address: String, cause: io::Error) -> ServerError {
    let advice = match cause.kind() {
        io::ErrorKind::AddrInUse if address.starts_with('/') || !address.contains(':') => {
            "; the path exists already: remove it if no other server uses it, or choose another"
        }
        io::ErrorKind::AddrInUse => "; choose another port, or 0 for any that is free",
        io::ErrorKind::PermissionDenied => "; ports below 1024 and folders of others need privileges, choose another",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        io::ErrorKind::NotFound => "; the folder does not exist",
        _ => "",
    };
    ServerError::Bind { address, cause, advice }
}

/// A socket that listens on an async runtime.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener, #[allow(dead_code, reason = "removes the file when it is dropped")] SocketFile),
}

impl Listener {
    pub(crate) async fn accept(&self) -> io::Result<Transport> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Tokens are small and each is awaited by someone. Where it can't be set, it is only slower.
                let _ = stream.set_nodelay(true);
                Ok(Transport::Tcp(stream))
            }
            Listener::Unix(listener, _) => Ok(Transport::Unix(listener.accept().await?.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn bind(host: &str, port: u16) -> Result<BoundListener, ServerError> {
        BoundListener::bind(&ServerConfig { host: host.to_owned(), port, ..ServerConfig::default() })
    }

    #[test]
    fn a_port_in_use_is_told_with_its_address() {
        let first = bind("127.0.0.1", 0).unwrap();
        let port = first.socket_address().unwrap().port();
        let message = bind("127.0.0.1", port).unwrap_err().to_string();
        assert!(message.contains(&format!("127.0.0.1:{port}")) && message.contains("another port"), "{message}");
    }

    #[test]
    fn an_address_of_nobody_and_a_name_of_nothing_are_told() {
        let config = ServerConfig {
            host: "203.0.113.7".to_owned(),
            port: 0,
            allow_public_without_key: true,
            ..ServerConfig::default()
        };
        let message = BoundListener::bind(&config).unwrap_err().to_string();
        assert!(message.contains("203.0.113.7") && message.contains("no interface"), "{message}");
        assert!(matches!(bind("no such name", 0), Err(ServerError::UnknownHost { .. })));
    }

    #[test]
    fn both_spellings_of_an_address_of_version_6_are_taken() {
        for host in ["::1", "[::1]"] {
            match bind(host, 0) {
                Ok(listener) => assert!(listener.address().starts_with("http://[::1]:"), "{}", listener.address()),
                // Not every machine has one.
                Err(error) => assert!(error.to_string().contains("[::1]:0"), "{error}"),
            }
        }
    }

    #[test]
    fn a_public_address_needs_a_key_or_a_word() {
        for host in ["0.0.0.0", "::", "[::]", "::ffff:0.0.0.0"] {
            let error = bind(host, 0).unwrap_err();
            assert!(matches!(error, ServerError::PublicWithoutKey { .. }), "{host}: {error}");
        }
        let with_key = ServerConfig {
            host: "0.0.0.0".to_owned(),
            port: 0,
            api_keys: vec!["k".to_owned()],
            ..ServerConfig::default()
        };
        assert!(BoundListener::bind(&with_key).is_ok());
        let forced = ServerConfig {
            host: "0.0.0.0".to_owned(),
            port: 0,
            allow_public_without_key: true,
            ..ServerConfig::default()
        };
        assert!(BoundListener::bind(&forced).is_ok());
    }

    #[test]
    fn the_file_of_a_socket_goes_with_it_and_an_existing_path_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let config = ServerConfig { uds: Some(path.clone()), ..ServerConfig::default() };
        let listener = BoundListener::bind(&config).unwrap();
        let message = BoundListener::bind(&config).unwrap_err().to_string();
        assert!(message.contains("exists already") && message.contains(&path.display().to_string()), "{message}");
        drop(listener);
        assert!(!path.exists());
        fs::write(&path, "a file of someone").unwrap();
        assert!(BoundListener::bind(&config).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file of someone");
    }
}
