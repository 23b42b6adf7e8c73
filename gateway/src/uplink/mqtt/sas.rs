//! Shared access signatures of Azure `IoT` Hub: a password that a device makes from its key, good until a moment it names
//! ("Control access to `IoT` Hub by using shared access signatures", structure of a token of a device).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// `SharedAccessSignature sr=…&sig=…&se=…` for `{host}/devices/{device}`, good until `expires` (seconds since 1970).
///
/// # Errors
/// The key is not base64.
pub fn token(host: &str, device: &str, key: &[u8], expires: u64) -> Result<String, base64::DecodeError> {
    let key = STANDARD.decode(key.trim_ascii())?;
    let resource = encode(&format!("{host}/devices/{device}"));
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let signature = hmac::sign(&key, format!("{resource}\n{expires}").as_bytes());
    let signature = encode(&STANDARD.encode(signature));
    Ok(format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires}"))
}

/// Everything but letters, digits and `-_.~` as `%XX` (RFC 3986 §2.3).
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.extend(
                [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789ABCDEF"[usize::from(digit)])),
            );
        }
    }
    out
}

/// The counterpart of [`encode`]; what is not `%XX` stands for itself.
pub fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let digits = behind.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits.filter(|_| *first == b'%').and_then(|two| u8::from_str_radix(two, 16).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &behind[2..] } else { behind };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_openssl_signs() {
        // printf 'hub.azure-devices.net%%2Fdevices%%2Fbarn\n1800000000' |
        //     openssl dgst -sha256 -hmac 'a device key of 32 bytes exactly' -binary | base64
        let key = STANDARD.encode("a device key of 32 bytes exactly");
        assert_eq!(
            token("hub.azure-devices.net", "barn", key.as_bytes(), 1_800_000_000).unwrap(),
            "SharedAccessSignature sr=hub.azure-devices.net%2Fdevices%2Fbarn&sig=UL5eUWTWeQswqGg7d3eAoGpeBIZW0V1OYlrdPvJ3nA0%3D&se=1800000000"
        );
        assert!(token("h", "d", b"not base64!", 0).is_err());
    }

    #[test]
    fn encoding_keeps_what_needs_none_and_reads_back() {
        assert_eq!(encode("a/b+c=d ~-_.ü"), "a%2Fb%2Bc%3Dd%20~-_.%C3%BC");
        for text in ["", "%", "100%", "%zz", "a/b?c&d=ü", "%2", "\u{1f30a}"] {
            assert_eq!(decode(&encode(text)), text);
        }
        assert_eq!(decode("%24.mid=x%2fy%"), "$.mid=x/y%");
    }
}
