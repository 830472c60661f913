//! `runtime.v1.ImageService`.

use std::sync::Arc;

use base64::Engine as _;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_server::ImageService as Service;
use tonic::{Request, Response, Status};

use crate::image::{self, Credentials, Image, PullOptions};
use crate::runtime::{Error, Runtime};

/// Serves the image store as CRI.
#[derive(Clone, Debug)]
pub struct ImageService {
    runtime: Arc<Runtime>,
    insecure_registries: Vec<String>,
}

type Reply<T> = Result<Response<T>, Status>;

// === impl ImageService ===

impl ImageService {
    pub fn new(runtime: Arc<Runtime>, insecure_registries: Vec<String>) -> Self {
        Self {
            runtime,
            insecure_registries,
        }
    }
}

#[tonic::async_trait]
impl Service for ImageService {
    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Reply<cri::ListImagesResponse> {
        let wanted = request
            .into_inner()
            .filter
            .and_then(|filter| filter.image)
            .map(|image| image.image)
            .unwrap_or_default();
        let images = if wanted.is_empty() {
            self.runtime.images.list()
        } else {
            self.runtime
                .images
                .find(&wanted)
                .map(|found| found.into_iter().collect())
        };
        let images = images.map_err(failed)?;
        Ok(Response::new(cri::ListImagesResponse {
            images: images.iter().map(describe).collect(),
        }))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Reply<cri::ImageStatusResponse> {
        let request = request.into_inner();
        let reference = name(request.image)?;
        let found = self.runtime.images.find(&reference).map_err(failed)?;
        let mut info = std::collections::HashMap::new();
        if request.verbose
            && let Some(image) = &found
        {
            let config = serde_json::to_string(&image.config)
                .map_err(|error| Status::internal(error.to_string()))?;
            info.insert("info".to_owned(), config);
        }
        Ok(Response::new(cri::ImageStatusResponse {
            image: found.as_ref().map(describe),
            info,
        }))
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Reply<cri::PullImageResponse> {
        let request = request.into_inner();
        let reference = name(request.image)?;
        let options = PullOptions {
            insecure_registries: self.insecure_registries.clone(),
            credentials: credentials(request.auth)?,
        };
        let image = image::pull(&self.runtime.images, &reference, &options)
            .await
            .map_err(failed)?;
        Ok(Response::new(cri::PullImageResponse {
            image_ref: image.id,
        }))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Reply<cri::RemoveImageResponse> {
        let reference = name(request.into_inner().image)?;
        let images = self.runtime.images.clone();
        tokio::task::spawn_blocking(move || {
            // CRI removes the image, not just one of its names.
            match images.find(&reference)? {
                Some(image) => images.remove(&image.id),
                None => Ok(()),
            }
        })
        .await
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(failed)?;
        Ok(Response::new(cri::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _request: Request<cri::ImageFsInfoRequest>,
    ) -> Reply<cri::ImageFsInfoResponse> {
        let images = self.runtime.images.clone();
        let usage = tokio::task::spawn_blocking(move || images.usage())
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(failed)?;
        let timestamp = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        let filesystem = |path: &std::path::Path, bytes, inodes| cri::FilesystemUsage {
            timestamp,
            fs_id: Some(cri::FilesystemIdentifier {
                mountpoint: path.display().to_string(),
            }),
            used_bytes: Some(cri::UInt64Value { value: bytes }),
            inodes_used: Some(cri::UInt64Value { value: inodes }),
        };
        let images = filesystem(self.runtime.images.root(), usage.bytes, usage.inodes);
        Ok(Response::new(cri::ImageFsInfoResponse {
            container_filesystems: vec![images.clone()],
            image_filesystems: vec![images],
        }))
    }
}

fn describe(image: &Image) -> cri::Image {
    let user = image
        .config
        .config
        .as_ref()
        .and_then(|config| config.user.clone())
        .unwrap_or_default();
    let user = user.split(':').next().unwrap_or_default();
    let uid = if user.is_empty() {
        Some(0)
    } else {
        user.parse().ok()
    };
    cri::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.iter().cloned().collect(),
        repo_digests: image.repo_digests.iter().cloned().collect(),
        size: image.size,
        uid: uid.map(|value| cri::Int64Value { value }),
        username: match uid {
            Some(_) => String::new(),
            None => user.to_owned(),
        },
        spec: Some(cri::ImageSpec {
            image: image.id.clone(),
            ..cri::ImageSpec::default()
        }),
        pinned: image.pinned,
    }
}

fn name(image: Option<cri::ImageSpec>) -> Result<String, Status> {
    image
        .map(|image| image.image)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Status::invalid_argument("no image specified"))
}

fn credentials(auth: Option<cri::AuthConfig>) -> Result<Credentials, Status> {
    let Some(auth) = auth else {
        return Ok(Credentials::Anonymous);
    };
    if !auth.registry_token.is_empty() {
        return Ok(Credentials::Bearer(auth.registry_token));
    }
    if !auth.username.is_empty() {
        return Ok(Credentials::Basic {
            username: auth.username,
            password: auth.password,
        });
    }
    if auth.auth.is_empty() {
        return Ok(Credentials::Anonymous);
    }
    let invalid = || Status::invalid_argument("invalid credentials");
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(auth.auth.trim())
        .map_err(|_| invalid())?;
    let text = String::from_utf8(decoded).map_err(|_| invalid())?;
    let (username, password) = text.split_once(':').ok_or_else(invalid)?;
    Ok(Credentials::Basic {
        username: username.to_owned(),
        password: password.trim_end_matches('\0').to_owned(),
    })
}

fn failed(error: image::Error) -> Status {
    Error::from(error).into()
}
