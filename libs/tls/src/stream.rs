use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures_rustls::TlsStream;
use rustls::pki_types::CertificateDer;
use smol::io::{AsyncRead, AsyncWrite};
use webpki::EndEntityCert;

/// A connection with TLS or without. It is boxed, because its buffers would be part of every future around it.
#[derive(Debug)]
pub enum Stream<T> {
    /// Without TLS.
    Plain(T),
    /// After the handshake.
    Tls(Box<TlsStream<T>>),
}

impl<T> Stream<T> {
    /// Whether it is encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The connection below TLS. Reading from it or writing to it would break TLS.
    pub fn get_mut(&mut self) -> &mut T {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_mut().0,
        }
    }

    /// The DNS names and URIs in the subject alternative names of the peer's certificate; none if it has shown none. The
    /// handshake has verified the certificate.
    pub fn peer_names(&self) -> Vec<String> {
        let Self::Tls(stream) = self else { return Vec::new() };
        let (_, session) = stream.get_ref();
        session.peer_certificates().and_then(<[_]>::first).map(names).unwrap_or_default()
    }
}

/// The DNS names and URIs of a certificate.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    let names = certificate.valid_dns_names().map(str::to_ascii_lowercase);
    names.chain(certificate.valid_uri_names().map(str::to_owned)).collect()
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_read(context, buffer),
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(context, slices),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_flush(context),
        }
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_close(context),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_close(context),
        }
    }
}
