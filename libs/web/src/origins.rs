use config::Value;

/// Origins of pages whose scripts may call the service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(pub(crate) Vec<String>);

impl Value for Origins {
    const EXPECTED: &'static str = "none, or origins such as https://app.example.org, separated by commas";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::default());
        }
        let origins = text.split(',').map(str::trim).map(|origin| {
            let url = tide::http::Url::parse(origin).map_err(|error| format!("in one of them, {error}"))?;
            // As a browser sends it: no path, and no port that is the scheme's own.
            if matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == origin {
                Ok(origin.to_owned())
            } else {
                Err("one of them is not an origin as browsers send it: scheme://host, with the port if it is not the scheme's own".to_owned())
            }
        });
        origins.collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_browsers_send() {
        assert_eq!(Origins::parse("none"), Ok(Origins::default()));
        assert!(Origins::parse("https://app.example.org, http://localhost:3000").is_ok());
        for wrong in
            ["*", "null", "app.example.org", "https://app.example.org/", "https://app.example.org:443", "file://x"]
        {
            assert!(Origins::parse(wrong).is_err(), "{wrong}");
        }
    }
}
